// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/git_index.h"

#include <algorithm>
#include <cerrno>
#include <optional>

namespace nearbox::ignore {
namespace {

constexpr std::size_t kHeaderBytes = 12;
constexpr std::size_t kStatBytes = 40;       // what precedes an entry's object name
constexpr std::uint16_t kExtended = 0x4000;  // two more bytes of flags follow
constexpr std::uint16_t kNameMask = 0x0fff;  // a length; all ones: look for the end
constexpr std::size_t kExtensionHeader = 8;
constexpr std::size_t kMaxGitPath = 65'536;  // of one entry; git itself has no bound

base::Error damaged(std::string_view what) {
  return base::errno_error(EINVAL, "git index: " + std::string(what));
}

// Reads big-endian numbers without leaving the bytes.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  std::size_t at() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }
  bool skip(std::size_t n) {
    if (n > left()) return false;
    at_ += n;
    return true;
  }
  std::optional<std::uint32_t> number(std::size_t width) {
    if (width > left()) return std::nullopt;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < width; ++i) value = value << 8 | static_cast<unsigned char>(bytes_[at_++]);
    return value;
  }
  // The bytes up to a NUL, which is skipped as well.
  std::optional<std::string_view> text() {
    const auto end = bytes_.find('\0', at_);
    if (end == std::string_view::npos) return std::nullopt;
    const auto text = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return text;
  }
  // git's "offset" encoding: each byte adds one to what came before, so that no length has two forms.
  std::optional<std::size_t> offset_number() {
    std::size_t value = 0;
    for (int i = 0; i < 5; ++i) {
      const auto byte = number(1);
      if (!byte) return std::nullopt;
      value = (i == 0 ? 0 : (value + 1) << 7) + (*byte & 0x7f);
      if ((*byte & 0x80) == 0) return value;
    }
    return std::nullopt;
  }

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
};

// Reads one entry into `path`, which holds the path before it.
bool read_entry(Reader& in, std::uint32_t version, std::size_t hash_bytes, std::string& path) {
  const auto begin = in.at();
  if (!in.skip(kStatBytes + hash_bytes)) return false;
  const auto flags = in.number(2);
  if (!flags) return false;
  if (version >= 3 && (*flags & kExtended) != 0 && !in.skip(2)) return false;
  if (version == 4) {
    const auto drop = in.offset_number();
    if (!drop || *drop > path.size()) return false;
    path.resize(path.size() - *drop);
  } else {
    path.clear();
  }
  const auto text = in.text();
  if (!text || text->size() > kMaxGitPath) return false;
  path += *text;
  if (path.empty() || path.size() > kMaxGitPath) return false;
  const std::size_t stored = *flags & kNameMask;
  if (stored != kNameMask && stored != path.size()) return false;  // also what a wrong hash width looks like
  if (version == 4) return true;
  const auto length = in.at() - begin;  // with one NUL, which is part of the padding
  return in.skip((8 - length % 8) % 8);
}

}  // namespace

void TrackedSet::add(std::string_view path) {
  spans_.push_back({text_.size(), path.size()});
  text_ += path;
}

void TrackedSet::finish() {
  const auto less = [&](const Span& a, const Span& b) { return view(a) < view(b); };
  const auto same = [&](const Span& a, const Span& b) { return view(a) == view(b); };
  // git keeps its own order, which is this one: usually there is nothing to do.
  if (!std::is_sorted(spans_.begin(), spans_.end(), less)) std::sort(spans_.begin(), spans_.end(), less);
  spans_.erase(std::unique(spans_.begin(), spans_.end(), same), spans_.end());  // a conflict has three stages
}

std::size_t TrackedSet::lower_bound(std::string_view path) const {
  const auto found = std::lower_bound(spans_.begin(), spans_.end(), path,
                                      [&](const Span& span, std::string_view p) { return view(span) < p; });
  return static_cast<std::size_t>(found - spans_.begin());
}

bool TrackedSet::contains(std::string_view path) const {
  const auto i = lower_bound(path);
  return i < spans_.size() && at(i) == path;
}

bool TrackedSet::any_below(std::string_view directory) const {
  if (directory.empty()) return !spans_.empty();
  const std::string prefix = std::string(directory) + "/";
  const auto i = lower_bound(prefix);
  return i < spans_.size() && at(i).starts_with(prefix);
}

base::Result<TrackedSet> parse_git_index(std::string_view bytes, ObjectHash hash) {
  const std::size_t hash_bytes = hash == ObjectHash::kSha1 ? 20 : 32;
  if (bytes.size() < kHeaderBytes + hash_bytes) return damaged("too short");
  Reader in(bytes.substr(0, bytes.size() - hash_bytes));  // the last bytes are a checksum
  if (bytes.substr(0, 4) != "DIRC") return damaged("no DIRC");
  (void)in.skip(4);
  const auto version = in.number(4).value_or(0);
  const auto count = in.number(4).value_or(0);
  if (version < 2 || version > 4)
    return base::errno_error(ENOTSUP, "git index of version " + std::to_string(version));
  TrackedSet set;
  std::string path;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (!read_entry(in, version, hash_bytes, path)) return damaged("entry " + std::to_string(i));
    set.add(path);
  }
  while (in.left() >= kExtensionHeader) {
    const auto name = bytes.substr(in.at(), 4);
    (void)in.skip(4);
    const auto size = in.number(4).value_or(0);
    // Without such an extension the entries are not what the index holds.
    if (name[0] < 'A' || name[0] > 'Z')
      return base::errno_error(ENOTSUP, "git index with " + std::string(name));
    if (!in.skip(size)) return damaged("extension");
  }
  if (in.left() != 0) return damaged("its end");
  set.finish();
  return set;
}

TrackedSet parse_ls_files(std::string_view bytes) {
  TrackedSet set;
  while (!bytes.empty()) {
    const auto end = std::min(bytes.find('\0'), bytes.size());
    if (end > 0) set.add(bytes.substr(0, end));
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
  }
  set.finish();
  return set;
}

std::vector<std::string> differences(const TrackedSet& a, const TrackedSet& b) {
  std::vector<std::string> out;
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < a.size() || j < b.size()) {
    if (j == b.size() || (i < a.size() && a.at(i) < b.at(j))) {
      out.emplace_back(a.at(i++));
    } else if (i == a.size() || b.at(j) < a.at(i)) {
      out.emplace_back(b.at(j++));
    } else {
      ++i, ++j;
    }
  }
  return out;
}

}  // namespace nearbox::ignore
