// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace nearbox::ignore {

enum class Case : std::uint8_t { kSensitive, kFold };  // kFold: ASCII letters only, as git does

// What `*`, `?` and a set may match: a whole path, where `/` is special, or one name.
enum class GlobKind : std::uint8_t { kPath, kName };

// The bytes that git's ignore rules treat as a wildcard.
constexpr bool is_wildcard(char c) { return c == '*' || c == '?' || c == '[' || c == '\\'; }

// One compiled wildcard, with the meaning that git's wildmatch gives it.
//
// The matcher follows all possibilities at once, so its time is bound by pattern × text: rule files may
// come from a sandbox, and a matcher that tries one after the other can be made to run for hours.
// Threads: any, once it is made.
// Source:  git 2.39 Documentation/gitignore.txt; corners by observation, `git check-ignore` is the
//          oracle of tests/model/ignore_oracle_test.cpp.
class Glob {
 public:
  // `pattern` holds no NUL.
  Glob(std::string_view pattern, GlobKind kind, Case fold);

  bool matches(std::string_view text) const;

 private:
  enum class Op : std::uint8_t {
    kByte,     // this byte
    kOne,      // one byte, `?`
    kSet,      // one byte of a set
    kStar,     // any bytes but `/`
    kAny,      // any bytes
    kOptDirs,  // nothing itself: goes on behind the following kAny and `/` as well
  };
  struct Token {
    Op op;
    unsigned char byte = 0;
    std::uint16_t set = 0;
  };
  using Set = std::bitset<256>;

  void compile(std::string_view pattern);
  std::size_t compile_stars(std::string_view pattern, std::size_t at);
  // Position behind the set that begins at `at`; npos: it is malformed.
  std::size_t compile_set(std::string_view pattern, std::size_t at);
  bool accepts(const Token& token, unsigned char c) const;
  template <class States>
  void reach(States& states, std::size_t i) const;
  template <class States>
  bool run(std::string_view text) const;

  GlobKind kind_;
  bool fold_;
  bool never_ = false;  // malformed: matches nothing
  std::vector<Token> tokens_;
  std::vector<Set> sets_;
};

}  // namespace nearbox::ignore
