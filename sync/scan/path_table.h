// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace nearbox::scan {

// Numbers paths in the order in which they are added, and finds them again.
//
// Owns:    the text of the paths.
// Threads: any number may ask once finish() returned.
class PathTable {
 public:
  void add(std::string_view path);
  void finish();

  std::optional<std::size_t> find(std::string_view path) const;
  std::string_view path(std::size_t number) const {
    const auto& one = paths_[number];
    return std::string_view(text_).substr(one.at, one.size);
  }
  std::size_t size() const { return paths_.size(); }

 private:
  struct Path {
    std::uint64_t at;
    std::uint32_t size;
    std::uint32_t tag;  // of its hash: most slots that are not the one differ here
  };
  std::string text_;
  std::vector<Path> paths_;
  std::vector<std::uint32_t> slots_;  // open addressing; number + 1, 0: free
};

// Paths, each standing for itself and all below it.
class PathCover {
 public:
  void add(std::string_view path) { tops_.emplace(path); }
  bool covers(std::string_view path) const;

 private:
  std::set<std::string, std::less<>> tops_;
};

}  // namespace nearbox::scan
