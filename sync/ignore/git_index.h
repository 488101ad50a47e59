// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/base/result.h"

namespace nearbox::ignore {

inline constexpr std::size_t kMaxGitIndexBytes = 512ull * 1024 * 1024;

// The paths that git tracks in one work tree, sorted, relative to its top.
//
// Owns:    the text of the paths.
// Threads: any, once it is filled.
class TrackedSet {
 public:
  void add(std::string_view path);
  void finish();  // sorts; before any question

  bool contains(std::string_view path) const;
  bool any_below(std::string_view directory) const;
  std::size_t size() const { return spans_.size(); }
  std::string_view at(std::size_t i) const { return view(spans_[i]); }

 private:
  struct Span {
    std::size_t at;
    std::size_t size;
  };
  std::string_view view(const Span& span) const { return std::string_view(text_).substr(span.at, span.size); }
  std::size_t lower_bound(std::string_view path) const;

  std::string text_;
  std::vector<Span> spans_;
};

enum class ObjectHash : std::uint8_t { kSha1, kSha256 };

// Reads the bytes of a git index, versions 2 to 4.
// Errors: EINVAL it is none, or is cut or damaged; ENOTSUP it needs an extension we do not know (split and
// sparse
//         indexes), which git itself has to be asked about.
// Source: git 2.39 Documentation/gitformat-index.txt.
base::Result<TrackedSet> parse_git_index(std::string_view bytes, ObjectHash hash);

// The output of `git ls-files -z`.
TrackedSet parse_ls_files(std::string_view bytes);

// Paths that are in one of the two alone.
std::vector<std::string> differences(const TrackedSet& a, const TrackedSet& b);

}  // namespace nearbox::ignore
