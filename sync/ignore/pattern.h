// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sync/ignore/glob.h"

namespace nearbox::ignore {

inline constexpr std::size_t kMaxRuleFileBytes = 4 * 1024 * 1024;  // a larger rule file is refused
inline constexpr std::size_t kMaxPatternBytes = 4096;  // a longer line is refused; paths are no longer
inline constexpr std::size_t kMaxPatterns = 65'536;    // of one file

// A path that rules are asked about: relative, components joined with single slashes.
struct PathQuery {
  std::string_view path;
  bool directory = false;  // a real one: a symlink to a directory is none
  std::string_view name() const {
    const auto slash = path.rfind('/');
    return slash == std::string_view::npos ? path : path.substr(slash + 1);
  }
};

// One line of a rule file.
class Pattern {
 public:
  // nullopt: the line holds no pattern (empty, a comment) or one of more than kMaxPatternBytes.
  static std::optional<Pattern> parse(std::string_view line, std::uint32_t number, Case fold);

  // `below` is the path from the rule file's own directory on.
  bool matches(std::string_view below, std::string_view name, bool directory) const;
  // Whether a path below directory `below` might match. May be true although none can.
  bool may_match_below(std::string_view below) const;

  bool negated() const { return negated_; }
  std::uint32_t line() const { return line_; }
  const std::string& text() const { return text_; }  // as written, without the spaces that do not count

 private:
  enum class How : std::uint8_t { kNameIs, kNameEnds, kNameGlob, kPathIs, kPathGlob, kNever };

  void parse_path(std::string_view body, Case fold);
  bool equal(std::string_view a, std::string_view b) const;

  std::string text_;
  std::string literal_;  // what a name or path is, begins or ends with
  std::optional<Glob> glob_;
  std::vector<std::string> components_;  // of a path pattern, for may_match_below()
  How how_ = How::kNever;
  bool negated_ = false;
  bool directories_ = false;
  bool fold_ = false;
  std::uint32_t line_ = 0;
};

// What a rule file, or a list from the command line, says.
struct PatternList {
  std::string source;  // the file as people name it
  std::string base;    // its directory, as "a/b/" below where paths begin; "" for the top
  std::vector<Pattern> patterns;
  std::size_t refused = 0;  // lines past kMaxPatternBytes or kMaxPatterns
  bool any_negated = false;

  // The last pattern that matches, as git has it; null: none. `query.path` lies below `base`.
  const Pattern* last_match(const PathQuery& query) const;
  bool may_match_below(std::string_view directory) const;
  bool may_negate_below(std::string_view directory) const;
};

// Parses the bytes of a rule file. Never fails: lines that mean nothing are left out, as git does.
PatternList parse_patterns(std::string_view bytes, std::string source, std::string base, Case fold);
// The same for patterns given one by one; line numbers count from 1.
PatternList parse_patterns(const std::vector<std::string>& lines, std::string source);

}  // namespace nearbox::ignore
