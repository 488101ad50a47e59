// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/dir_watcher.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <memory>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

namespace nearbox::sandbox_server {
namespace {

constexpr std::uint32_t kMask = IN_CREATE | IN_MODIFY | IN_ATTRIB | IN_DELETE | IN_DELETE_SELF |
                                IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF;

std::string join(const std::string& directory, std::string_view name) {
  return directory.empty() ? std::string(name) : directory + "/" + std::string(name);
}

struct Child {
  std::string name;
  bool directory = false;
};

std::vector<Child> children_of(const std::string& path) {
  std::vector<Child> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::opendir(path.c_str()), ::closedir);
  while (listing) {
    const auto* entry = ::readdir(listing.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    bool directory = entry->d_type == DT_DIR;
    if (entry->d_type == DT_UNKNOWN) {
      struct stat st {};
      directory = ::lstat((path + "/" + entry->d_name).c_str(), &st) == 0 && S_ISDIR(st.st_mode);
    }
    out.push_back({std::string(name), directory});
  }
  return out;
}

}  // namespace

std::string_view name_of(WatchKind kind) {
  switch (kind) {
    case WatchKind::kCreate:
      return "EVENT_TYPE_CREATE";
    case WatchKind::kWrite:
      return "EVENT_TYPE_WRITE";
    case WatchKind::kRemove:
      return "EVENT_TYPE_REMOVE";
    case WatchKind::kRename:
      return "EVENT_TYPE_RENAME";
    case WatchKind::kChmod:
      break;
  }
  return "EVENT_TYPE_CHMOD";
}

base::Result<DirWatcher> DirWatcher::open(const std::string& root, Depth depth) {
  struct stat st {};
  if (::stat(root.c_str(), &st) != 0) return base::last_errno("watch " + root);
  if (!S_ISDIR(st.st_mode)) return base::errno_error(ENOTDIR, "watch " + root);
  base::UniqueFd fd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!fd) return base::last_errno("error creating watcher");
  auto slim = root;
  while (slim.size() > 1 && slim.back() == '/') slim.pop_back();
  DirWatcher out(std::move(fd), std::move(slim), depth);
  if (auto added = out.add_tree("", nullptr); !added) return std::move(added).error();
  return out;
}

std::string DirWatcher::path_of(const std::string& name) const {
  if (name.empty()) return root_;
  return root_ == "/" ? "/" + name : root_ + "/" + name;
}

// Watches `top` and, where asked for, all directories below it. `found`: reports what lies in
// directories that were not watched before.
base::Result<void> DirWatcher::add_tree(const std::string& top, std::vector<WatchEvent>* found) {
  struct Step {
    std::string name;
    std::size_t depth;
  };
  std::vector<Step> left{{top, 0}};
  while (!left.empty()) {
    const auto [name, depth] = std::move(left.back());
    left.pop_back();
    const bool is_root = name.empty();
    const auto path = path_of(name);
    // The root may be a link; nothing below it is followed.
    const int wd = ::inotify_add_watch(fd_.get(), path.c_str(),
                                       kMask | IN_ONLYDIR | (is_root ? 0U : std::uint32_t{IN_DONT_FOLLOW}));
    if (wd < 0) {
      if (is_root || errno == ENOSPC) return base::last_errno("error adding watch of " + path);
      continue;  // gone again, or not for us to read
    }
    const bool fresh = names_.insert_or_assign(wd, name).second;
    if (names_.size() > kMaxWatchedDirs) return base::errno_error(ENOSPC, "too many directories to watch");
    if (depth_ == Depth::kFlat) return {};
    if (depth >= kMaxWatchDepth) continue;
    for (auto& child : children_of(path)) {
      auto below = join(name, child.name);
      if (fresh && found != nullptr) found->push_back({WatchKind::kCreate, below});
      if (child.directory) left.push_back({std::move(below), depth + 1});
    }
  }
  return {};
}

void DirWatcher::take(const inotify_event& event, std::string_view name, std::vector<WatchEvent>& out) {
  const auto found = names_.find(event.wd);
  if (found == names_.end()) return;
  const auto directory = found->second;
  if ((event.mask & IN_IGNORED) != 0) {
    names_.erase(found);
    return;
  }
  // A directory below the root is reported by its parent, under its name.
  if (name.empty() && !directory.empty()) return;
  const auto shown = name.empty() ? std::string(".") : join(directory, name);
  // One event may be several, in this order. Source: watch.go.
  if ((event.mask & (IN_CREATE | IN_MOVED_TO)) != 0) out.push_back({WatchKind::kCreate, shown});
  if ((event.mask & (IN_MOVED_FROM | IN_MOVE_SELF)) != 0) out.push_back({WatchKind::kRename, shown});
  if ((event.mask & IN_ATTRIB) != 0) out.push_back({WatchKind::kChmod, shown});
  if ((event.mask & IN_MODIFY) != 0) out.push_back({WatchKind::kWrite, shown});
  if ((event.mask & (IN_DELETE | IN_DELETE_SELF)) != 0) out.push_back({WatchKind::kRemove, shown});
}

base::Result<std::vector<WatchEvent>> DirWatcher::read() {
  constexpr std::size_t kBuffer = 64 * 1024;
  alignas(inotify_event) std::array<char, kBuffer> data{};
  std::vector<WatchEvent> out;
  const auto got = ::read(fd_.get(), data.data(), data.size());
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) return out;
    return base::last_errno("read events");
  }
  for (ssize_t at = 0; at < got;) {
    inotify_event event{};
    std::memcpy(&event, data.data() + at, sizeof event);
    const std::string name(data.data() + at + sizeof event,
                           ::strnlen(data.data() + at + sizeof event, event.len));
    at += static_cast<ssize_t>(sizeof event + event.len);
    if ((event.mask & IN_Q_OVERFLOW) != 0)
      return base::errno_error(EOVERFLOW, "fsnotify: queue or buffer overflow");
    const auto watched = names_.find(event.wd);
    const auto directory = watched == names_.end() ? std::string() : watched->second;
    const bool arrives = watched != names_.end() && (event.mask & IN_ISDIR) != 0 &&
                         (event.mask & (IN_CREATE | IN_MOVED_TO)) != 0;
    take(event, name, out);
    if (!arrives || depth_ == Depth::kFlat) continue;
    if (auto added = add_tree(join(directory, name), &out); !added)
      return base::errno_error(EOVERFLOW, added.error().message());
  }
  return out;
}

}  // namespace nearbox::sandbox_server
