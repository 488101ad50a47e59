// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/tree_walk.h"

#include <array>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/vfs.h>
#include <system_error>
#include <unistd.h>

#include "tools/agent/fs_path.h"
#include "tools/agent/versions.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kMaxHurried = 256;
constexpr std::size_t kEntryCost = 128;  // of one entry besides its name and target
constexpr std::chrono::milliseconds kWaitStep{1000};

using Clock = std::chrono::steady_clock;

bool is_below(std::string_view path, std::string_view directory) {
  if (directory.empty()) return true;
  return path.size() > directory.size() && path.substr(0, directory.size()) == directory &&
         path[directory.size()] == '/';
}

std::string join(const std::string& directory, const std::string& name) {
  return directory.empty() ? name : directory + "/" + name;
}

wire::TreeBlock head_of(const std::string& path, std::uint32_t flags, std::int32_t error = 0) {
  wire::TreeBlock block;
  block.path = path;
  block.flags = flags;
  block.error = error;
  return block;
}

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

bool pseudo_fs(int fd) {
  struct statfs fs {};
  return ::fstatfs(fd, &fs) == 0 && pseudo_magic(static_cast<std::uint64_t>(fs.f_type));
}

}  // namespace

base::Result<std::unique_ptr<TreeWalk>> TreeWalk::start(RootPtr root, const wire::Tree& request,
                                                        MountProbe* probe, RootTable* roots) {
  auto fd = open_beneath(root->dir.get(), request.path, O_PATH | O_DIRECTORY);
  if (!fd) return std::move(fd).error();
  std::unique_ptr<TreeWalk> walk(new TreeWalk(std::move(root), request, probe, roots));
  Dir first;
  first.path = request.path;
  first.start = true;
  {
    base::MutexLock lock(walk->mu_);
    walk->queue_locked(std::move(first));
  }
  try {
    for (std::size_t i = 0; i < kWalkThreads; ++i) {
      walk->threads_.emplace_back([self = walk.get()] { self->walk(); });
    }
  } catch (const std::system_error&) {
    if (walk->threads_.empty()) return base::errno_error(EAGAIN, "walk");
  }
  return walk;
}

TreeWalk::TreeWalk(RootPtr root, const wire::Tree& request, MountProbe* probe, RootTable* roots)
    : root_(std::move(root)), request_(request), mounts_(MountTable::load()), probe_(probe), roots_(roots) {}

TreeWalk::~TreeWalk() { stop(); }

void TreeWalk::stop() {
  base::MutexLock lock(mu_);
  stopped_ = true;
  changed_.notify_all();
}

TreeWalk::Counts TreeWalk::counts() {
  base::MutexLock lock(mu_);
  return counts_;
}

TreeWalk::Next TreeWalk::next(Item& out, Clock::time_point deadline) {
  base::MutexLock lock(mu_);
  while (blocks_.empty()) {
    if (stopped_ || (dirs_.empty() && busy_ == 0)) return Next::kEnd;
    if (!changed_.wait_until(mu_, deadline) && blocks_.empty()) return Next::kTimeout;
  }
  out = std::move(blocks_.front().first);
  block_bytes_ -= blocks_.front().second;
  blocks_.pop_front();
  changed_.notify_all();
  return Next::kItem;
}

void TreeWalk::hurry(std::string_view path) {
  base::MutexLock lock(mu_);
  hurried_.emplace_back(path);
  if (hurried_.size() > kMaxHurried) hurried_.pop_front();
  // The directory itself, or the nearest one above it that is still to be listed.
  for (std::string_view at = path;;) {
    const auto it = by_path_.find(at);
    if (it != by_path_.end()) {
      it->second->urgent = true;
      dirs_.splice(dirs_.begin(), dirs_, it->second);
      return;
    }
    if (at.empty()) return;
    const auto slash = at.rfind('/');
    at = slash == std::string_view::npos ? std::string_view{} : at.substr(0, slash);
  }
}

void TreeWalk::walk() noexcept {
  pthread_setname_np(pthread_self(), "tree-walk");
  Dir dir;
  while (take_dir(dir)) {
    expand(dir);
    dir_done();
  }
}

bool TreeWalk::take_dir(Dir& out) {
  base::MutexLock lock(mu_);
  while (dirs_.empty()) {
    if (stopped_ || busy_ == 0) {
      changed_.notify_all();
      return false;
    }
    changed_.wait_until(mu_, Clock::now() + kWaitStep);
  }
  if (stopped_) return false;
  by_path_.erase(std::string_view(dirs_.front().path));
  out = std::move(dirs_.front());
  dirs_.pop_front();
  ++busy_;
  return true;
}

void TreeWalk::dir_done() {
  base::MutexLock lock(mu_);
  --busy_;
  changed_.notify_all();
}

bool TreeWalk::wanted_locked(std::string_view path) {
  for (const auto& wanted : hurried_) {
    if (wanted == path || is_below(wanted, path)) return true;
  }
  return false;
}

void TreeWalk::queue_locked(Dir dir) {
  dir.urgent = wanted_locked(dir.path);
  const bool front = dir.urgent || dirs_.size() > kMaxWalkQueued / 4;
  const auto it = dirs_.insert(front ? dirs_.begin() : dirs_.end(), std::move(dir));
  by_path_.emplace(std::string_view(it->path), it);
}

void TreeWalk::queue_dirs(std::vector<Dir> dirs) {
  std::vector<Dir> left_out;
  {
    base::MutexLock lock(mu_);
    for (auto& dir : dirs) {
      if (dirs_.size() >= kMaxWalkQueued) {
        counts_.truncated = true;
        left_out.push_back(std::move(dir));
      } else {
        queue_locked(std::move(dir));
      }
    }
    changed_.notify_all();
  }
  for (const auto& dir : left_out) {
    if (!emit(head_of(dir.path, wire::kTreeNotExpanded), false)) return;
  }
}

bool TreeWalk::emit(wire::TreeBlock block, bool urgent) {
  std::size_t cost = kEntryCost + block.path.size();
  for (const auto& entry : block.entries) cost += sizeof entry + entry.name.size() + entry.target.size();
  base::MutexLock lock(mu_);
  while (block_bytes_ > kMaxBlocksBytes && !stopped_) changed_.wait_until(mu_, Clock::now() + kWaitStep);
  if (stopped_) return false;
  counts_.entries += block.entries.size();
  block_bytes_ += cost;
  Item item{std::move(block), urgent};
  auto at = blocks_.end();
  if (urgent) {  // behind other urgent ones: the blocks of one directory keep their order
    for (at = blocks_.begin(); at != blocks_.end() && at->first.urgent; ++at) {
    }
  }
  blocks_.emplace(at, std::move(item), cost);
  changed_.notify_all();
  return true;
}

std::string TreeWalk::absolute(const std::string& path) const {
  return root_->path == "/" ? "/" + path : root_->path + "/" + path;
}

// A mountpoint whose file system does not answer: whoever looks at it hangs. The watcher tells when it does.
bool TreeWalk::silent(const std::string& path) const {
  if (probe_ == nullptr || !mounts_.any_foreign()) return false;
  const auto point = absolute(path);
  if (mounts_.device_at(point) == 0 || !mounts_.foreign(point)) return false;
  return probe_->answering({point}, Clock::now() + kProbeWait).empty();
}

bool TreeWalk::may_expand(const Dir& dir) {
  if (request_.depth != 0 && dir.level >= request_.depth) return false;
  base::MutexLock lock(mu_);
  if (request_.max_entries == 0 || counts_.entries < request_.max_entries) return true;
  counts_.truncated = true;
  return false;
}

void TreeWalk::expand(const Dir& dir) {
  const Uncounted here(roots_ != nullptr && roots_->uncounted(absolute(dir.path)));
  if (dir.own_mount) {
    auto block = head_of(dir.path, wire::kTreePseudo | wire::kTreeCrossed);
    block.attr.mode = S_IFDIR | 0755;
    block.attr.nlink = 2;
    emit(std::move(block), dir.urgent);
    return;
  }
  const bool expands = may_expand(dir);
  auto fd = open_beneath(root_->dir.get(), dir.path, O_DIRECTORY | (expands ? O_RDONLY : O_PATH));
  if (!fd && fd.error().as_errno() == EACCES) {  // not listable, but perhaps visible
    auto look = open_beneath(root_->dir.get(), dir.path, O_DIRECTORY | O_PATH);
    auto block = head_of(dir.path, wire::kTreeFailed, EACCES);
    if (look) {
      if (auto st = stat_fd(look->get())) block.attr = make_attr(*st);
    }
    emit(std::move(block), dir.urgent);
    return;
  }
  if (!fd) {
    const int error = fd.error().as_errno();
    const bool vanished = error == ENOENT || error == ENOTDIR || error == ELOOP;
    if (!vanished || dir.start) emit(head_of(dir.path, wire::kTreeFailed, error), dir.urgent);
    return;
  }
  auto st = stat_fd(fd->get());
  if (!st) return;
  auto head = head_of(dir.path, 0);
  head.attr = make_attr(*st);
  const bool crossed = !dir.start && head.attr.dev != dir.parent_dev;
  if (crossed) head.flags |= wire::kTreeCrossed;
  // Mounted since the walk began: what this walk is for may have been mounted below it.
  if (crossed && !mounts_.knows(head.attr.dev) && MountTable::load().own_mount(absolute(dir.path))) {
    head.flags |= wire::kTreePseudo;
    emit(std::move(head), dir.urgent);
    return;
  }
  if ((crossed || dir.start) && (mounts_.pseudo_device(head.attr.dev) || pseudo_fs(fd->get()))) {
    head.flags |= wire::kTreePseudo;
    emit(std::move(head), dir.urgent);
    return;
  }
  if (!expands) {
    head.flags |= wire::kTreeNotExpanded;
    emit(std::move(head), dir.urgent);
    return;
  }
  list(dir, std::move(*fd), std::move(head));
}

bool TreeWalk::read_entry(int fd, const std::string& name, const Dir& dir, wire::TreeEntry& out, bool& own) {
  out.name = name;
  own = mounts_.any_own() && mounts_.own_mount(absolute(join(dir.path, name)));
  own = own || silent(join(dir.path, name));
  if (own) {
    out.attr.mode = S_IFDIR | 0755;
    out.attr.nlink = 2;
    return true;
  }
  const auto as_of = Versions::process().now();
  const auto st = stat_at(fd, name.c_str());
  if (!st) return false;
  out.attr = make_attr(*st, as_of);
  if (!S_ISLNK(st->st_mode)) return true;
  std::array<char, wire::kMaxPath> target{};
  const ssize_t n = ::readlinkat(fd, name.c_str(), target.data(), target.size());
  if (n < 0) return false;
  out.target.assign(target.data(), static_cast<std::size_t>(n));
  return true;
}

void TreeWalk::list(const Dir& dir, base::UniqueFd fd, wire::TreeBlock head) {
  const std::unique_ptr<DIR, CloseDir> handle(::fdopendir(fd.get()));
  if (!handle) {
    head.flags |= wire::kTreeFailed;
    head.error = errno;
    emit(std::move(head), dir.urgent);
    return;
  }
  const int number = fd.release();  // the handle closes it
  {
    base::MutexLock lock(mu_);
    ++counts_.directories;
  }
  auto block = head;
  std::size_t bytes = dir.path.size();
  std::vector<Dir> below;
  while (true) {
    errno = 0;
    const struct dirent* found = ::readdir(handle.get());
    if (found == nullptr) break;
    const std::string name = found->d_name;
    if (name == "." || name == "..") continue;
    wire::TreeEntry entry;
    bool own = false;
    if (!read_entry(number, name, dir, entry, own)) continue;
    bytes += kEntryCost + entry.name.size() + entry.target.size();
    if (S_ISDIR(entry.attr.mode)) {
      Dir child{join(dir.path, name), head.attr.dev, dir.level + 1, false, own, false};
      if (child.path.size() < wire::kMaxPath) below.push_back(std::move(child));  // else: no path names it
    }
    block.entries.push_back(std::move(entry));
    if (block.entries.size() < wire::kMaxBlockEntries && bytes < kBlockBytes) continue;
    block.flags |= wire::kTreeMore;
    if (!emit(std::move(block), dir.urgent)) return;
    block = head;
    bytes = dir.path.size();
    queue_dirs(std::move(below));
    below.clear();
  }
  if (errno != 0) {  // what was read so far was sent; the rest is unknown
    block.flags |= wire::kTreeFailed;
    block.error = errno;
    block.entries.clear();
  }
  if (!emit(std::move(block), dir.urgent)) return;
  queue_dirs(std::move(below));
}

}  // namespace nearbox::agent
