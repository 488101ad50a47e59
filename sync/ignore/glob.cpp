// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/glob.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>

namespace nearbox::ignore {
namespace {

constexpr std::size_t kNpos = std::string_view::npos;

constexpr bool is_upper(unsigned char c) { return c >= 'A' && c <= 'Z'; }
constexpr bool is_lower(unsigned char c) { return c >= 'a' && c <= 'z'; }
constexpr bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }
constexpr bool is_alpha(unsigned char c) { return is_upper(c) || is_lower(c); }
constexpr unsigned char lower(unsigned char c) {
  return is_upper(c) ? static_cast<unsigned char>(c + 32) : c;
}
constexpr unsigned char upper(unsigned char c) {
  return is_lower(c) ? static_cast<unsigned char>(c - 32) : c;
}
constexpr bool is_print(unsigned char c) { return c >= 0x20 && c <= 0x7e; }
// git's own idea of a space: no vertical tab, no form feed.
constexpr bool is_space(unsigned char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

using Predicate = bool (*)(unsigned char);

constexpr std::pair<std::string_view, Predicate> kClasses[] = {
    {"alnum", [](unsigned char c) { return is_alpha(c) || is_digit(c); }},
    {"alpha", is_alpha},
    {"blank", [](unsigned char c) { return c == ' ' || c == '\t'; }},
    {"cntrl", [](unsigned char c) { return c < 0x20 || c == 0x7f; }},
    {"digit", is_digit},
    {"graph", [](unsigned char c) { return is_print(c) && c != ' '; }},
    {"lower", is_lower},
    {"print", is_print},
    {"punct", [](unsigned char c) { return is_print(c) && c != ' ' && !is_alpha(c) && !is_digit(c); }},
    {"space", is_space},
    {"upper", is_upper},
    {"xdigit", [](unsigned char c) { return is_digit(c) || (lower(c) >= 'a' && lower(c) <= 'f'); }},
};

Predicate find_class(std::string_view name) {
  for (const auto& [known, predicate] : kClasses) {
    if (known == name) return predicate;
  }
  return nullptr;
}

// The states of the matcher that are possible now: most patterns have fewer than 64.
struct SmallStates {
  explicit SmallStates(std::size_t) {}
  void add(std::size_t i) { bits |= std::uint64_t{1} << i; }
  bool has(std::size_t i) const { return (bits >> i & 1) != 0; }
  bool empty() const { return bits == 0; }
  void clear() { bits = 0; }
  template <class F>
  void each(F&& f) const {
    for (std::uint64_t b = bits; b != 0; b &= b - 1) f(static_cast<std::size_t>(std::countr_zero(b)));
  }
  std::uint64_t bits = 0;
};

struct LargeStates {
  explicit LargeStates(std::size_t count) : flags(count, false) {}
  void add(std::size_t i) { flags[i] = true; }
  bool has(std::size_t i) const { return flags[i]; }
  bool empty() const { return std::find(flags.begin(), flags.end(), true) == flags.end(); }
  void clear() { std::fill(flags.begin(), flags.end(), false); }
  template <class F>
  void each(F&& f) const {
    for (std::size_t i = 0; i < flags.size(); ++i) {
      if (flags[i]) f(i);
    }
  }
  std::vector<bool> flags;
};

}  // namespace

Glob::Glob(std::string_view pattern, GlobKind kind, Case fold) : kind_(kind), fold_(fold == Case::kFold) {
  compile(pattern);
}

void Glob::compile(std::string_view pattern) {
  for (std::size_t i = 0; i < pattern.size() && !never_;) {
    const char c = pattern[i];
    const auto byte = static_cast<unsigned char>(c);
    if (c == '*') {
      i = compile_stars(pattern, i);
    } else if (c == '?') {
      tokens_.push_back({Op::kOne});
      ++i;
    } else if (c == '[') {
      const auto next = compile_set(pattern, i);
      never_ = next == kNpos;
      i = next;
    } else if (c == '\\') {
      // An escaped letter is compared as it stands: with folding on, `\A` matches nothing, as in git.
      never_ = i + 1 == pattern.size();
      if (!never_) tokens_.push_back({Op::kByte, static_cast<unsigned char>(pattern[i + 1])});
      i += 2;
    } else {
      tokens_.push_back({Op::kByte, fold_ ? lower(byte) : byte});
      ++i;
    }
  }
}

std::size_t Glob::compile_stars(std::string_view pattern, std::size_t at) {
  std::size_t end = at;
  while (end < pattern.size() && pattern[end] == '*') ++end;
  if (kind_ == GlobKind::kName) {
    tokens_.push_back({Op::kAny});
    return end;
  }
  const std::string_view rest = pattern.substr(end);
  const bool after_slash = at == 0 || pattern[at - 1] == '/';
  const bool before_slash = rest.empty() || rest[0] == '/' || rest.starts_with("\\/");
  if (end - at < 2 || !after_slash || !before_slash) {
    tokens_.push_back({Op::kStar});
    return end;
  }
  if (rest.starts_with('/')) tokens_.push_back({Op::kOptDirs});
  tokens_.push_back({Op::kAny});
  return end;
}

std::size_t Glob::compile_set(std::string_view pattern, std::size_t at) {
  const auto byte_at = [&](std::size_t i) -> unsigned char {
    return i < pattern.size() ? static_cast<unsigned char>(pattern[i]) : 0;
  };
  Set set;
  std::size_t i = at + 1;
  const bool negated = byte_at(i) == '!' || byte_at(i) == '^';
  if (negated) ++i;
  unsigned char previous = 0;  // where a range may begin; 0: none
  for (bool first = true; first || byte_at(i) != ']'; first = false, ++i) {
    unsigned char c = byte_at(i);
    if (c == 0) return kNpos;
    if (c == '\\') {
      c = byte_at(++i);
      if (c == 0) return kNpos;
      set.set(c);
      previous = c;
    } else if (c == '-' && previous != 0 && byte_at(i + 1) != 0 && byte_at(i + 1) != ']') {
      unsigned char last = byte_at(++i);
      if (last == '\\') last = byte_at(++i);
      if (last == 0) return kNpos;
      for (unsigned b = 1; b < 256; ++b) {
        const auto text = static_cast<unsigned char>(b);
        const unsigned char other = fold_ ? upper(text) : text;
        if ((text >= previous && text <= last) || (other >= previous && other <= last)) set.set(b);
      }
      previous = 0;
    } else if (c == '[' && byte_at(i + 1) == ':') {
      const auto close = pattern.find(']', i + 2);
      if (close == kNpos) return kNpos;
      if (close < i + 3 || pattern[close - 1] != ':') {  // no ":]": `[` stands for itself
        set.set('[');
        previous = '[';
        continue;
      }
      const auto name = pattern.substr(i + 2, close - i - 3);
      const auto predicate = find_class(name);
      if (predicate == nullptr) return kNpos;
      for (unsigned b = 1; b < 256; ++b) {
        const auto text = static_cast<unsigned char>(b);
        if (predicate(text) || (fold_ && name == "upper" && is_lower(text))) set.set(b);
      }
      previous = 0;
      i = close;
    } else {
      set.set(c);
      previous = c;
    }
  }
  if (negated) set.flip();
  if (kind_ == GlobKind::kPath) set.reset('/');
  if (sets_.size() > 0xffff) return kNpos;
  tokens_.push_back({Op::kSet, 0, static_cast<std::uint16_t>(sets_.size())});
  sets_.push_back(set);
  return i + 1;
}

bool Glob::accepts(const Token& token, unsigned char c) const {
  switch (token.op) {
    case Op::kByte:
      return token.byte == c;
    case Op::kOne:
      return kind_ == GlobKind::kName || c != '/';
    case Op::kSet:
      return sets_[token.set].test(c);
    case Op::kStar:
      return c != '/';
    case Op::kAny:
      return true;
    case Op::kOptDirs:
      return false;
  }
  return false;
}

// Adds state `i` and all that is reached from it without a byte. As deep as the pattern is long at most.
template <class States>
void Glob::reach(States& states, std::size_t i) const {
  if (states.has(i)) return;
  states.add(i);
  if (i == tokens_.size()) return;
  const Op op = tokens_[i].op;
  if (op == Op::kStar || op == Op::kAny || op == Op::kOptDirs) reach(states, i + 1);
  if (op == Op::kOptDirs) reach(states, i + 3);
}

template <class States>
bool Glob::run(std::string_view text) const {
  States now(tokens_.size() + 1);
  States next(tokens_.size() + 1);
  reach(now, 0);
  for (const char raw : text) {
    const auto byte = static_cast<unsigned char>(raw);
    const unsigned char c = fold_ ? lower(byte) : byte;
    next.clear();
    now.each([&](std::size_t i) {
      if (i == tokens_.size() || !accepts(tokens_[i], c)) return;
      const bool stays = tokens_[i].op == Op::kStar || tokens_[i].op == Op::kAny;
      reach(next, stays ? i : i + 1);
    });
    std::swap(now, next);
    if (now.empty()) return false;
  }
  return now.has(tokens_.size());
}

bool Glob::matches(std::string_view text) const {
  if (never_) return false;
  return tokens_.size() < 64 ? run<SmallStates>(text) : run<LargeStates>(text);
}

}  // namespace nearbox::ignore
