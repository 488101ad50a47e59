// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#include "client/wire/messages.h"

namespace nearbox::agent {

struct NodeHash {
  std::size_t operator()(wire::NodeId node) const {
    return std::hash<std::uint64_t>()(node.ino * 0x9e3779b97f4a7c15ULL + node.dev);
  }
};

inline constexpr std::size_t kPlaceDirBytes = 2 * sizeof(std::uint64_t);
// A name in a directory as one key.
inline std::string place_key(wire::NodeId dir, std::string_view name) {
  std::string key(kPlaceDirBytes, '\0');
  std::memcpy(key.data(), &dir.dev, sizeof dir.dev);
  std::memcpy(key.data() + sizeof dir.dev, &dir.ino, sizeof dir.ino);
  key.append(name);
  return key;
}

}  // namespace nearbox::agent
