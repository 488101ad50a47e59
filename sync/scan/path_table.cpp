// SPDX-License-Identifier: Apache-2.0
#include "sync/scan/path_table.h"

#include <bit>

#include <xxhash.h>

namespace nearbox::scan {
namespace {

std::uint64_t hash_of(std::string_view path) { return XXH3_64bits(path.data(), path.size()); }

}  // namespace

void PathTable::add(std::string_view path) {
  const auto hash = hash_of(path);
  paths_.push_back(
      {text_.size(), static_cast<std::uint32_t>(path.size()), static_cast<std::uint32_t>(hash >> 32)});
  text_ += path;
}

void PathTable::finish() {
  slots_.assign(std::bit_ceil(paths_.size() * 2 + 2), 0);
  const auto mask = slots_.size() - 1;
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    auto slot = hash_of(path(i)) & mask;
    while (slots_[slot] != 0) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<std::uint32_t>(i + 1);
  }
}

std::optional<std::size_t> PathTable::find(std::string_view wanted) const {
  if (paths_.empty()) return std::nullopt;
  const auto hash = hash_of(wanted);
  const auto mask = slots_.size() - 1;
  for (auto slot = hash & mask; slots_[slot] != 0; slot = (slot + 1) & mask) {
    const auto number = slots_[slot] - 1;
    if (paths_[number].tag == static_cast<std::uint32_t>(hash >> 32) && path(number) == wanted) return number;
  }
  return std::nullopt;
}

bool PathCover::covers(std::string_view path) const {
  if (tops_.empty()) return false;
  for (auto at = path;; at = at.substr(0, at.rfind('/'))) {
    if (tops_.find(at) != tops_.end()) return true;
    if (at.find('/') == std::string_view::npos) return false;
  }
}

}  // namespace nearbox::scan
