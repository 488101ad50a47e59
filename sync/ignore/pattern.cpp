// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/pattern.h"

#include <algorithm>
#include <strings.h>
#include <utility>

namespace nearbox::ignore {
namespace {

// Spaces at the end do not count unless a backslash stands before them.
std::string_view trim_spaces(std::string_view line) {
  std::size_t end = 0;  // behind the last byte that counts
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == ' ') continue;
    if (line[i] == '\\' && ++i == line.size()) return line;
    end = i + 1;
  }
  return line.substr(0, end);
}

std::size_t literal_prefix(std::string_view text) {
  return static_cast<std::size_t>(std::find_if(text.begin(), text.end(), is_wildcard) - text.begin());
}

std::vector<std::string> split_components(std::string_view text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0;;) {
    const auto slash = text.find('/', at);
    parts.emplace_back(text.substr(at, slash == std::string_view::npos ? slash : slash - at));
    if (slash == std::string_view::npos) return parts;
    at = slash + 1;
  }
}

}  // namespace

std::optional<Pattern> Pattern::parse(std::string_view line, std::uint32_t number, Case fold) {
  line = line.substr(0, line.find('\0'));  // git's lines are C strings
  line = trim_spaces(line);
  if (line.size() > kMaxPatternBytes) return std::nullopt;
  Pattern pattern;
  pattern.text_ = line;
  pattern.line_ = number;
  pattern.fold_ = fold == Case::kFold;
  if (line.starts_with('!')) {
    pattern.negated_ = true;
    line.remove_prefix(1);
  }
  const bool only_star_is_wild = line.starts_with('*') && literal_prefix(line.substr(1)) == line.size() - 1;
  std::size_t literal = literal_prefix(line);
  if (line.ends_with('/')) {
    pattern.directories_ = true;
    line.remove_suffix(1);
  }
  literal = std::min(literal, line.size());
  if (line.find('/') != std::string_view::npos) {
    pattern.parse_path(line, fold);
  } else if (line.empty()) {
    pattern.how_ = How::kNever;
  } else if (literal == line.size()) {
    pattern.how_ = How::kNameIs;
    pattern.literal_ = line;
  } else if (only_star_is_wild) {
    pattern.how_ = How::kNameEnds;
    pattern.literal_ = line.substr(1);
  } else {
    pattern.how_ = How::kNameGlob;
    pattern.glob_.emplace(line, GlobKind::kName, fold);
  }
  return pattern;
}

// git compares what stands before the first wildcard as plain text and hands only the rest to its matcher,
// so that in `foo**/bar` the stars stand at a beginning and mean directories. Observed: git 2.39.5,
// ignore_oracle_test.cpp.
void Pattern::parse_path(std::string_view body, Case fold) {
  if (body.starts_with('/')) body.remove_prefix(1);
  const auto literal = literal_prefix(body);
  literal_ = body.substr(0, literal);
  how_ = literal == body.size() ? How::kPathIs : How::kPathGlob;
  if (how_ == How::kPathGlob) glob_.emplace(body.substr(literal), GlobKind::kPath, fold);
  components_ = split_components(body);
}

bool Pattern::equal(std::string_view a, std::string_view b) const {
  if (a.size() != b.size()) return false;
  return fold_ ? ::strncasecmp(a.data(), b.data(), a.size()) == 0 : a == b;
}

bool Pattern::matches(std::string_view below, std::string_view name, bool directory) const {
  if (directories_ && !directory) return false;
  switch (how_) {
    case How::kNameIs:
      return equal(name, literal_);
    case How::kNameEnds:
      return name.size() >= literal_.size() && equal(name.substr(name.size() - literal_.size()), literal_);
    case How::kNameGlob:
      return glob_->matches(name);
    case How::kPathIs:
      return equal(below, literal_);
    case How::kPathGlob:
      return below.size() >= literal_.size() && equal(below.substr(0, literal_.size()), literal_) &&
             glob_->matches(below.substr(literal_.size()));
    case How::kNever:
      return false;
  }
  return false;
}

bool Pattern::may_match_below(std::string_view below) const {
  if (how_ == How::kNever) return false;
  if (how_ != How::kPathIs && how_ != How::kPathGlob) return true;
  std::size_t part = 0;
  for (std::size_t at = 0; at < below.size(); ++part) {
    auto slash = below.find('/', at);
    if (slash == std::string_view::npos) slash = below.size();
    const auto name = below.substr(at, slash - at);
    at = slash + 1;
    if (part >= components_.size()) return false;  // names something further up
    const std::string& component = components_[part];
    // A set may hold a slash, a backslash may escape one, and `**` stands for any number of components: what
    // follows cannot be counted.
    if (component.find_first_of("[\\") != std::string::npos) return true;
    if (component.find("**") != std::string::npos) return true;
    if (part + 1 == components_.size()) return false;  // names something at this depth
    if (literal_prefix(component) == component.size()) {
      if (!equal(name, component)) return false;
    } else if (!Glob(component, GlobKind::kName, fold_ ? Case::kFold : Case::kSensitive).matches(name)) {
      return false;
    }
  }
  return true;
}

const Pattern* PatternList::last_match(const PathQuery& query) const {
  const auto below = query.path.substr(base.size());
  const auto name = query.name();
  for (auto pattern = patterns.rbegin(); pattern != patterns.rend(); ++pattern) {
    if (pattern->matches(below, name, query.directory)) return &*pattern;
  }
  return nullptr;
}

bool PatternList::may_match_below(std::string_view directory) const {
  const auto below = directory.substr(std::min(base.size(), directory.size()));
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const Pattern& p) { return !p.negated() && p.may_match_below(below); });
}

bool PatternList::may_negate_below(std::string_view directory) const {
  if (!any_negated) return false;
  const auto below = directory.substr(std::min(base.size(), directory.size()));
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const Pattern& p) { return p.negated() && p.may_match_below(below); });
}

namespace {

void add_line(PatternList& list, std::string_view line, std::uint32_t number, Case fold) {
  auto pattern = list.patterns.size() < kMaxPatterns ? Pattern::parse(line, number, fold) : std::nullopt;
  if (!pattern) {
    ++list.refused;
    return;
  }
  list.any_negated = list.any_negated || pattern->negated();
  list.patterns.push_back(*std::move(pattern));
}

}  // namespace

PatternList parse_patterns(std::string_view bytes, std::string source, std::string base, Case fold) {
  PatternList list;
  list.source = std::move(source);
  list.base = std::move(base);
  if (bytes.starts_with("\xef\xbb\xbf")) bytes.remove_prefix(3);
  std::uint32_t number = 0;
  while (!bytes.empty()) {
    const auto end = bytes.find('\n');
    auto line = bytes.substr(0, end);
    bytes.remove_prefix(end == std::string_view::npos ? bytes.size() : end + 1);
    ++number;
    if (line.empty() || line.starts_with('#')) continue;
    if (line.ends_with('\r')) line.remove_suffix(1);
    add_line(list, line, number, fold);
  }
  return list;
}

PatternList parse_patterns(const std::vector<std::string>& lines, std::string source) {
  PatternList list;
  list.source = std::move(source);
  std::uint32_t number = 0;
  for (const auto& line : lines) add_line(list, line, ++number, Case::kSensitive);
  return list;
}

}  // namespace nearbox::ignore
