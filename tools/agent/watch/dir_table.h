// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

#include "tools/agent/watch/hint.h"
#include "tools/agent/watch/node_hash.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxDirs = 64 * 1024;  // whose place is remembered: 20 MB when full
inline constexpr std::size_t kMinDirs = 8;          // what one step works with is not pushed out by itself

// The directories whose place a source has seen, by node and by file handle.
//
// Threads: one.
// Bounds:  those used longest ago are forgotten first. That costs nothing but another look: whoever still
//          has something to do with one holds its handle (Hint::place).
class DirTable {
 public:
  struct Dir {
    wire::NodeId node;
    HandleRef key;
    wire::NodeId parent;
    bool parent_known = false;
    std::uint32_t generation = 0;
  };
  explicit DirTable(std::size_t limit) : limit_(limit < kMinDirs ? kMinDirs : limit) {}
  DirTable(const DirTable&) = delete;  // the maps point into the list
  DirTable& operator=(const DirTable&) = delete;

  // Null when it is not known. What is found counts as used now; valid until the next put().
  Dir* find(wire::NodeId node);
  Dir* find(std::string_view key);
  // Instead of what had this node or this key. A number that is used again has another key.
  Dir* put(wire::NodeId node, std::string_view key);
  void erase(std::string_view key);
  std::size_t size() const { return order_.size(); }

 private:
  using At = std::list<Dir>::iterator;
  Dir* use(At at);
  void drop(At at);

  const std::size_t limit_;
  std::list<Dir> order_;  // last used first
  std::unordered_map<wire::NodeId, At, NodeHash> by_node_;
  std::unordered_map<std::string_view, At> by_key_;  // views of Dir::key
};

}  // namespace nearbox::agent
