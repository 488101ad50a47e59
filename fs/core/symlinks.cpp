// SPDX-License-Identifier: Apache-2.0
#include "fs/core/symlinks.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <vector>

#include "client/wire/limits.h"

namespace nearbox::fs {
namespace {

using Parts = std::vector<std::string_view>;

// Components without empty ones and ".".
Parts split(std::string_view path) {
  Parts parts;
  while (!path.empty()) {
    const auto slash = path.find('/');
    const auto part = path.substr(0, slash);
    if (!part.empty() && part != ".") parts.push_back(part);
    if (slash == std::string_view::npos) break;
    path.remove_prefix(slash + 1);
  }
  return parts;
}

// Applies `parts` to `at`, as on an absolute path: ".." at the top stays there.
Parts resolve(Parts at, const Parts& parts) {
  for (const auto part : parts) {
    if (part != "..") {
      at.push_back(part);
    } else if (!at.empty()) {
      at.pop_back();
    }
  }
  return at;
}

bool starts_with(const Parts& path, const Parts& prefix) {
  return path.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), path.begin());
}

std::string join(const Parts& parts, std::size_t from) {
  std::string text;
  for (std::size_t i = from; i < parts.size(); ++i) {
    if (!text.empty()) text += '/';
    text += parts[i];
  }
  return text;
}

// True when all ".." come first and there are at most `depth` of them.
bool stays_inside(const Parts& parts, std::size_t depth) {
  std::size_t ups = 0;
  while (ups < parts.size() && parts[ups] == "..") ++ups;
  return ups <= depth &&
         std::find(parts.begin() + static_cast<std::ptrdiff_t>(ups), parts.end(), "..") == parts.end();
}

LinkView contain(std::string_view target, std::string_view link_dir, std::string_view root) {
  const Parts wanted = split(target);
  const Parts dir = split(link_dir);
  const Parts top = split(root);
  const bool absolute = target.starts_with('/');
  if (!absolute && stays_inside(wanted, dir.size())) return {0, std::string(target), false};
  Parts base;
  if (!absolute) base = resolve(top, dir);
  const Parts at = resolve(std::move(base), wanted);
  if (!starts_with(at, top)) return {EPERM, {}, false};
  // The way from the link's directory: up past what the two do not share, then down.
  std::size_t shared = 0;
  while (shared < dir.size() && top.size() + shared < at.size() && at[top.size() + shared] == dir[shared]) {
    ++shared;
  }
  std::string text;
  for (std::size_t i = shared; i < dir.size(); ++i) text += text.empty() ? ".." : "/..";
  const std::string down = join(at, top.size() + shared);
  if (!down.empty()) text += (text.empty() ? "" : "/") + down;
  if (text.empty()) text = ".";
  return {0, std::move(text), true};
}

}  // namespace

LinkView show_link(SymlinkRule rule, std::string_view target, std::string_view link_dir,
                   std::string_view root, std::string_view mountpoint) {
  LinkView view{0, std::string(target), false};
  if (rule == SymlinkRule::kContain) {
    view = contain(target, link_dir, root);
  } else if (rule == SymlinkRule::kRebase && target.starts_with('/')) {
    const Parts top = split(root);
    const Parts at = resolve({}, split(target));
    const std::string below = join(at, starts_with(at, top) ? top.size() : 0);
    view.text = std::string(mountpoint);
    if (!below.empty()) view.text += (view.text.ends_with('/') ? "" : "/") + below;
  }
  if (rule == SymlinkRule::kContain && view.error == 0) {
    // Safe from here only: from another directory the same text may lead outside.
    const Parts parts = split(view.text);
    if (std::find(parts.begin(), parts.end(), "..") != parts.end()) view.rewritten = true;
  }
  if (view.text.size() >= wire::kMaxPath) return {ENAMETOOLONG, {}, false};
  return view;
}

}  // namespace nearbox::fs
