// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/inotify_source.h"

#include <algorithm>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/ioctl.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/agent/fs_path.h"

namespace nearbox::agent {
namespace {

constexpr std::uint32_t kMask =
    IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB | IN_ONLYDIR;
constexpr std::uint32_t kNames = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO;
constexpr std::size_t kBuffer = 128 * 1024;
constexpr std::size_t kMaxDepth = 2048;
constexpr std::size_t kMaxPulls = 64;

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

std::string join(const std::string& directory, std::string_view name) {
  std::string path = directory;
  if (!path.empty()) path += '/';
  return path.append(name);
}

}  // namespace

base::Result<std::unique_ptr<WatchSource>> make_inotify_source(OwnWrites& own) {
  base::UniqueFd fd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!fd) return base::last_errno("inotify");
  return std::unique_ptr<WatchSource>(std::make_unique<InotifySource>(std::move(fd), own));
}

InotifySource::InotifySource(base::UniqueFd fd, OwnWrites& own)
    : fd_(std::move(fd)), own_(own), buffer_(kBuffer) {
  own_.begin(fd_.get());
}

void InotifySource::place(wire::NodeId node, wire::NodeId parent, std::string_view name) {
  Dir& dir = dirs_[node];
  const auto before = places_.find(place_key(dir.parent, dir.name));
  if (before != places_.end() && before->second == node) places_.erase(before);
  dir.parent = parent;
  dir.name = name;
  std::erase_if(moves_, [&](const Move& move) { return move.node == node; });  // it was found
  auto key = place_key(parent, name);
  const auto there = places_.find(key);
  if (there != places_.end() && there->second != node) displaced_ = {key, there->second};
  places_[std::move(key)] = node;
}

// An errno.
int InotifySource::watch(int fd, wire::NodeId node, wire::NodeId parent, std::string_view name) {
  if (by_wd_.size() >= kMaxWatches || base::fault::active("agent.watch_limit", name)) return ENOSPC;
  // Through the descriptor, so that no symlink can come in between.
  const auto path = "/proc/self/fd/" + std::to_string(fd);
  const int wd = ::inotify_add_watch(fd_.get(), path.c_str(), kMask);
  if (wd < 0) {
    any_hidden_ = any_hidden_ || errno == EACCES;
    return errno;
  }
  Dir& dir = dirs_[node];
  if (dir.wd >= 0 && dir.wd != wd) by_wd_.erase(dir.wd);  // an inode number used again
  dir.wd = wd;
  by_wd_[wd] = node;
  place(node, parent, name);
  return 0;
}

// Past the limit. What lies below another one is looked at with it.
void InotifySource::unwatched(wire::NodeId parent, std::string_view name) {
  if (dirs_.count(parent) == 0) return;
  if (unwatched_.size() < kMaxUnwatched) {
    unwatched_.emplace(parent, name);
  } else {
    too_many_unwatched_ = true;
  }
}

bool InotifySource::retry(HintSink& sink) {
  if (too_many_unwatched_) return false;
  // Who still cannot be watched comes back when it is listed.
  const auto tries = std::move(unwatched_);
  unwatched_.clear();
  constexpr auto kFlags = kHintLook | kHintFresh | kHintArrived | kHintBorn | kHintUnwatched | kHintAtOnce;
  for (const auto& [parent, name] : tries) sink.hint({parent, name, kFlags, {}, {}});
  return true;
}

// Watches a directory of a root and all below it, each before it is listed.
int InotifySource::watch_below(const RootPtr& root, const std::string& start, AtLimit at_limit) {
  std::vector<std::string> waiting{start};
  while (!waiting.empty()) {
    const auto path = std::move(waiting.back());
    waiting.pop_back();
    auto fd = open_beneath(root->dir.get(), path, O_RDONLY | O_DIRECTORY);
    struct stat st {};
    if (!fd || ::fstat(fd->get(), &st) != 0) {
      any_hidden_ = any_hidden_ || (!fd && fd.error().as_errno() == EACCES);
      if (path.empty()) return EACCES;
      continue;
    }
    if (mounts_.pseudo_device(st.st_dev)) continue;
    const auto slash = path.rfind('/');
    auto up = open_beneath(root->dir.get(), slash == std::string::npos ? "" : path.substr(0, slash), O_PATH);
    struct stat above {};
    if (!path.empty() && (!up || ::fstat(up->get(), &above) != 0)) continue;
    const auto parent = path.empty() ? wire::NodeId{} : node_of(above);
    const bool known_root = path.empty() && dirs_.count(node_of(st)) != 0;  // below another root
    const auto name = slash == std::string::npos ? path : path.substr(slash + 1);
    const int error = known_root ? 0 : watch(fd->get(), node_of(st), parent, name);
    const bool limit = error == ENOSPC || error == ENOMEM;
    if (error != 0 && (path.empty() || (limit && at_limit == AtLimit::kStop))) return error;
    if (limit) unwatched(parent, name);
    if (error != 0) continue;
    const std::unique_ptr<DIR, CloseDir> handle(::fdopendir(fd->get()));
    if (!handle) continue;
    const int number = fd->release();
    while (const struct dirent* found = ::readdir(handle.get())) {
      const std::string entry = found->d_name;
      if (entry == "." || entry == "..") continue;
      if (found->d_type != DT_DIR && found->d_type != DT_UNKNOWN) continue;
      auto below = join(path, entry);
      if (mounts_.any_own() || mounts_.any_foreign()) {
        const auto absolute = root->path == "/" ? "/" + below : root->path + "/" + below;
        if (mounts_.own_mount(absolute) || mounts_.foreign(absolute)) continue;
      }
      struct stat sub {};
      if (found->d_type == DT_UNKNOWN &&
          (::fstatat(number, entry.c_str(), &sub, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(sub.st_mode))) {
        continue;
      }
      if (below.size() < wire::kMaxPath) waiting.push_back(std::move(below));
    }
  }
  return 0;
}

base::Result<void> InotifySource::add_root(const RootPtr& root, std::size_t index, HintSink& /*sink*/) {
  if (roots_.size() <= index) roots_.resize(index + 1);
  roots_[index] = root;
  // The removal of the root is told to its parent alone: its own event waits for our descriptor.
  const base::UniqueFd up(::openat(root->dir.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
  const auto above = "/proc/self/fd/" + std::to_string(up.get());
  const int wd =
      ::inotify_add_watch(fd_.get(), above.c_str(), IN_DELETE | IN_MOVED_FROM | IN_ONLYDIR | IN_MASK_ADD);
  if (wd >= 0) above_roots_.insert(wd);
  const int error = watch_below(root, "", AtLimit::kStop);
  if (error == 0) return {};
  remove_root(index);
  return base::errno_error(error, "inotify");
}

base::Result<void> InotifySource::add_mount(const RootPtr& root, const std::string& path) {
  const auto start = root->path == "/" ? root->path.size() : root->path.size() + 1;
  const int error = path.size() > start ? watch_below(root, path.substr(start), AtLimit::kGoOn) : 0;
  if (error != 0) return base::errno_error(error, path);
  return {};
}

void InotifySource::remove_root(std::size_t index) {
  if (index >= roots_.size() || !roots_[index]) return;
  roots_[index].reset();
  drop_outside();  // parents of roots stay watched for two kinds of event until the queue is closed
}

void InotifySource::drop(wire::NodeId node) {
  const auto it = dirs_.find(node);
  if (it == dirs_.end()) return;
  const auto place = places_.find(place_key(it->second.parent, it->second.name));
  if (place != places_.end() && place->second == node) places_.erase(place);
  dirs_.erase(it);
}

// Watches of what is below no root any more.
void InotifySource::drop_outside() {
  std::vector<wire::NodeId> outside;
  for (const auto& [node, dir] : dirs_) {
    if (roots_of(node).none()) outside.push_back(node);
  }
  for (const auto node : outside) {
    const int wd = dirs_[node].wd;
    (void)::inotify_rm_watch(fd_.get(), wd);
    by_wd_.erase(wd);
    drop(node);
  }
}

void InotifySource::rescan() {
  unwatched_.clear();
  too_many_unwatched_ = false;
  for (const auto& root : roots_) {
    const int error = root ? watch_below(root, "", AtLimit::kGoOn) : 0;
    if (error == ENOSPC || error == ENOMEM) too_many_unwatched_ = true;
  }
}

std::size_t InotifySource::queued() {
  int bytes = 0;
  if (::ioctl(fd_.get(), FIONREAD, &bytes) != 0 || bytes < 0) bytes = 0;
  return static_cast<std::size_t>(bytes) + (deferred_.empty() ? 0 : 1);
}

std::size_t InotifySource::read(HintSink& sink) {
  const auto ahead = deferred_.empty() ? 0U : 1U;
  const auto got = pull();
  settle_moves();
  const auto hints = std::exchange(deferred_, {});  // who is told may have more read
  for (const auto& hint : hints) sink.hint({hint.dir, hint.name, hint.flags, {}, {}});
  if (std::exchange(overflow_, false)) sink.overflow("the kernel's queue");
  if (std::exchange(check_roots_, false)) sink.check_roots();
  return got + ahead;
}

// Reads once; what it means for the places of directories holds from now on, hints wait for read().
std::size_t InotifySource::pull() {
  const ssize_t got = ::read(fd_.get(), buffer_.data(), buffer_.size());
  if (got <= 0) return 0;
  const char* at = buffer_.data();
  const char* const end = at + got;
  while (end - at >= static_cast<std::ptrdiff_t>(sizeof(struct inotify_event))) {
    struct inotify_event event {};
    std::memcpy(&event, at, sizeof event);
    const char* const name = at + sizeof event;
    at = name + event.len;
    if ((event.mask & IN_Q_OVERFLOW) != 0) {
      overflow_ = true;
      own_.lost();
    } else {
      take(event, std::string_view(name, ::strnlen(name, event.len)));
    }
  }
  if (deferred_.size() > kMaxDeferredHints) {
    deferred_.clear();
    overflow_ = true;
  }
  return static_cast<std::size_t>(got);
}

void InotifySource::take(const struct inotify_event& event, std::string_view name) {
  if ((event.mask & IN_ISDIR) != 0 && (event.mask & (IN_DELETE | IN_MOVED_FROM)) != 0) check_roots_ = true;
  const auto watched = by_wd_.find(event.wd);
  if (watched == by_wd_.end()) {
    if ((event.mask & IN_IGNORED) != 0 && !own_.mark(event.wd)) above_roots_.erase(event.wd);
    return;
  }
  const auto dir = watched->second;
  if ((event.mask & IN_IGNORED) != 0) {
    by_wd_.erase(watched);
    const auto it = dirs_.find(dir);
    if (it != dirs_.end() && it->second.wd == event.wd) drop(dir);
    return;
  }
  const bool directory = (event.mask & IN_ISDIR) != 0;
  std::uint32_t flags = kHintLook;
  const bool own = (event.mask & IN_CLOSE_WRITE) != 0 && own_.own_close(dir, name);
  if ((event.mask & (IN_MODIFY | IN_CLOSE_WRITE)) != 0 && !own) flags |= kHintContent;
  if ((event.mask & kNames) != 0) flags |= kHintListing;
  if ((event.mask & IN_CREATE) != 0) flags |= kHintBorn | kHintFresh;
  if ((event.mask & (IN_MOVED_FROM | IN_MOVED_TO)) != 0) {
    if (directory) {
      moved(event, dir, name, flags);
    } else if ((event.mask & IN_MOVED_TO) != 0) {
      flags |= kHintBorn;  // what was written under the old name may not have been seen there
    }
  }
  if (directory && any_hidden_ && (event.mask & IN_ATTRIB) != 0) {
    // Perhaps it can be looked into from now on: by its name as something new, a root by everything.
    flags |= kHintFresh | kHintArrived | kHintBorn;
    const auto is_dir = [&](const RootPtr& root) { return root && root->node == dir; };
    overflow_ = overflow_ || (name.empty() && std::any_of(roots_.begin(), roots_.end(), is_dir));
  }
  // What happens to one name in a row is one reason to look.
  if (!deferred_.empty() && deferred_.back().dir == dir && deferred_.back().name == name) {
    deferred_.back().flags |= flags;
  } else {
    deferred_.push_back({dir, std::string(name), flags});
  }
}

void InotifySource::moved(const struct inotify_event& event, wire::NodeId dir, std::string_view name,
                          std::uint32_t& flags) {
  flags |= kHintAtOnce;
  const auto key = place_key(dir, name);
  if ((event.mask & IN_MOVED_FROM) != 0) {
    wire::NodeId node;
    if (displaced_.first == key) {
      node = displaced_.second;
      displaced_ = {};
    } else if (const auto it = places_.find(key); it != places_.end()) {
      node = it->second;
      places_.erase(it);
    }
    if (node == wire::NodeId{}) return;
    moves_.push_back({event.cookie, node, roots_of(dir), std::chrono::steady_clock::now() + kMoveSettles});
    return;
  }
  const auto it = std::find_if(moves_.begin(), moves_.end(),
                               [&](const Move& move) { return move.cookie == event.cookie; });
  std::optional<Move> move;
  if (it != moves_.end()) {
    move = *it;
    moves_.erase(it);
  }
  const bool known = move && dirs_.count(move->node) != 0;
  if (known) place(move->node, dir, name);
  // It may be new to the clients of some root, or to us: they are told all of it.
  if (!known || (roots_of(dir) & ~move->roots).any()) flags |= kHintFresh | kHintArrived | kHintBorn;
}

// Directories that left and came nowhere have left the roots.
void InotifySource::settle_moves() {
  const auto now = std::chrono::steady_clock::now();
  bool left = false;
  while (!moves_.empty() && moves_.front().until <= now) {
    const auto it = dirs_.find(moves_.front().node);
    if (it != dirs_.end()) it->second.parent = {};
    moves_.erase(moves_.begin());
    left = true;
  }
  if (left) drop_outside();
}

RootSet InotifySource::roots_of(wire::NodeId dir) {
  RootSet found;
  for (std::size_t level = 0; level < kMaxDepth; ++level) {
    for (std::size_t i = 0; i < roots_.size(); ++i) {
      if (roots_[i] && roots_[i]->node == dir) found.set(i);
    }
    const auto it = dirs_.find(dir);
    if (it == dirs_.end() || it->second.parent == wire::NodeId{}) break;
    dir = it->second.parent;
  }
  return found;
}

base::UniqueFd InotifySource::open_now(wire::NodeId dir) {
  std::string path;
  auto at = dir;
  for (std::size_t level = 0; level < kMaxDepth; ++level) {
    for (const auto& root : roots_) {
      if (!root || root->node != at) continue;
      auto fd = open_beneath(root->dir.get(), path, O_PATH | O_DIRECTORY);
      struct stat st {};
      if (!fd && fd.error().as_errno() == EACCES) any_hidden_ = true;
      if (!fd || ::fstat(fd->get(), &st) != 0 || node_of(st) != dir) return base::UniqueFd();
      return std::move(*fd);
    }
    const auto it = dirs_.find(at);
    if (it == dirs_.end() || it->second.parent == wire::NodeId{}) break;
    path = path.empty() ? it->second.name : it->second.name + "/" + path;
    at = it->second.parent;
  }
  return base::UniqueFd();
}

base::UniqueFd InotifySource::open_dir(wire::NodeId dir) {
  auto fd = open_now(dir);
  // A directory that was moved is not where it was: the event is queued already and says where it is.
  for (std::size_t i = 0; i < kMaxPulls && !fd && pull() > 0; ++i) {
  }
  return fd ? std::move(fd) : open_now(dir);
}

std::optional<Stat> InotifySource::target(std::string_view /*handle*/) { return std::nullopt; }

void InotifySource::entered(int fd, wire::NodeId dir, wire::NodeId parent, std::string_view name) {
  if (parent == wire::NodeId{}) return;
  const int error = watch(fd, dir, parent, name);
  if (error == ENOSPC || error == ENOMEM) unwatched(parent, name);
}

}  // namespace nearbox::agent
