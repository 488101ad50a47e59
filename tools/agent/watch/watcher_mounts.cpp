// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fcntl.h>
#include <iterator>
#include <linux/stat.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tools/agent/watch/watcher_impl.h"

// What is mounted below the roots.
namespace nearbox::agent {
namespace {

#ifndef STATX_MNT_ID_UNIQUE
constexpr unsigned kUniqueMountId = 0x4000;  // linux v6.8 include/uapi/linux/stat.h
#else
constexpr unsigned kUniqueMountId = STATX_MNT_ID_UNIQUE;
#endif

// 0 where the kernel cannot say.
std::uint64_t unique_id(const std::string& path) {
  if (base::fault::active("agent.no_unique_mounts")) return 0;
  struct statx x {};
  // By number: the C library's header and the kernel's each have the structure.
  const long done =
      ::syscall(SYS_statx, AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, kUniqueMountId, &x);
  return done == 0 && (x.stx_mask & kUniqueMountId) != 0 ? x.stx_mnt_id : 0;
}

}  // namespace

void Watcher::load_mounts() {
  ++mounts_loaded_;
  mounts_ = MountTable::load();
  looker_.set_mounts(mounts_);
  versions_.set_blind(mounts_.foreign_devices());
  for (auto* source : {fanotify_.get(), inotify_.get()}) {
    if (source != nullptr) source->set_mounts(mounts_);
  }
}

std::vector<Watcher::MountedNow> Watcher::mounted_below(const std::string& directory) {
  std::vector<MountedNow> all;
  for (auto& at : mounts_.below(directory)) {
    MountedNow now{std::move(at), 0};
    // Numbers of mounts and of devices are used again: without a better one, every change may concern it.
    if (!now.at.foreign) now.unique = unique_id(now.at.path);
    if (!now.at.foreign && now.unique == 0) now.unique = mounts_loaded_;
    all.push_back(std::move(now));
  }
  return all;
}

wire::MountsReply Watcher::mounts(const RootPtr& root) {
  wire::MountsReply reply;
  reply.mounts = MountTable::load().told_below(root->path);
  std::set<std::string> unwatched;
  bool watched = false;
  {
    base::MutexLock lock(mu_);
    for (const auto& at : roots_) {
      if (!at.root || at.root->node != root->node) continue;
      watched = true;
      for (const auto& one : at.unwatched) unwatched.insert(one.path);
    }
  }
  for (auto& one : reply.mounts) {
    if (one.how != wire::MountHow::kWatched || (watched && unwatched.count(one.path) == 0)) continue;
    one.how = wire::MountHow::kUnwatched;
  }
  std::erase_if(reply.mounts, [](const auto& one) {
    return one.path.size() >= wire::kMaxPath || one.type.size() > wire::kMaxName;
  });
  if (reply.mounts.size() > wire::kMaxMountsTold) {
    reply.left_out = static_cast<std::uint32_t>(reply.mounts.size() - wire::kMaxMountsTold);
    reply.mounts.resize(wire::kMaxMountsTold);
  }
  return reply;
}

// What came to be mounted below the roots is watched as well; what is there now is for the clients to read.
void Watcher::look_at_mounts() {
  struct pollfd changed {
    mountinfo_.get(), POLLPRI, 0
  };
  if (!mountinfo_) return;
  const bool more = ::poll(&changed, 1, 0) > 0;
  if (!std::exchange(mounts_changed_, false) && !more) return;
  load_mounts();
  const auto used = used_roots();
  for (std::size_t index = 0; index < used.size(); ++index) {
    if (used.test(index)) look_at_mounts_of(index);
  }
}

void Watcher::look_at_mounts_of(std::size_t index) {
  RootPtr root;
  WatchSource* source = nullptr;
  std::vector<MountedNow> before;
  {
    base::MutexLock lock(mu_);
    root = roots_[index].root;
    source = roots_[index].source;
    before = roots_[index].mounts;
  }
  const auto now = mounted_below(root->path);
  std::vector<MountedNow> differ;
  std::set_symmetric_difference(now.begin(), now.end(), before.begin(), before.end(),
                                std::back_inserter(differ));
  std::vector<Unwatched> unwatched;
  std::set<std::string> paths;
  for (const auto& one : differ) paths.insert(one.at.path);
  for (const auto& path : paths) {
    const bool foreign = mounts_.foreign(path);
    auto added = foreign ? base::Result<void>() : source->add_mount(root, path);
    if (!added) log_.warn("event=no_watch error=\"" + added.error().message() + "\"");
    if (foreign || !added) unwatched.push_back({path, foreign, false});
  }
  base::MutexLock lock(mu_);
  auto& at = roots_[index];
  std::erase_if(at.unwatched, [&](const Unwatched& one) { return paths.count(one.path) != 0; });
  for (const auto& path : paths) {
    if (mounts_.foreign(path)) continue;
    own_.push_back({OwnChange{root, {relative(path, root->path)}, {}, true, {}}, nullptr});
  }
  at.mounts = now;
  for (auto& one : unwatched) {
    any_foreign_ = any_foreign_ || one.foreign;
    foreign_told_ = one.foreign ? Clock::time_point{} : foreign_told_;
    at.unwatched.push_back(std::move(one));
  }
}

void Watcher::tell_unwatched() {
  {
    base::MutexLock lock(mu_);
    for (auto& root : roots_) {
      for (const auto& one : root.unwatched) {
        if (one.foreign) continue;
        versions_.bump_all();
        for (auto& to : root.subscriptions) {
          const wire::Lost lost{to.number, relative(one.path, root.root->path), true, true, {}};
          (void)give_locked(to, wire::EventKind::kLost, wire::encode(lost));
        }
      }
    }
  }
  tell_foreign(kProbeWait);
}

// Where others make changes without a word, the clients read again, and compare sizes and times: nothing
// there has a version. What does not answer is left alone: their reading would hang.
void Watcher::tell_foreign(std::chrono::milliseconds wait) {
  if (!any_foreign_) return;
  foreign_told_ = Clock::now();
  std::vector<std::string> all;
  {
    base::MutexLock lock(mu_);
    for (const auto& root : roots_) {
      for (const auto& one : root.unwatched) {
        if (root.root && one.foreign) all.push_back(one.path);
      }
    }
  }
  any_foreign_ = !all.empty();
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  const auto answering = probe_.answering(all, Clock::now() + wait);
  base::MutexLock lock(mu_);
  for (auto& root : roots_) {
    for (auto& one : root.unwatched) {
      if (!root.root || !one.foreign) continue;
      if (!std::binary_search(answering.begin(), answering.end(), one.path)) continue;
      const auto path = relative(one.path, root.root->path);
      const auto slash = path.rfind('/');
      const auto parent = slash == std::string::npos ? std::string() : path.substr(0, slash);
      for (auto& to : root.subscriptions) {
        const wire::Lost above{to.number, parent, false, false, {}};
        if (!one.told) (void)give_locked(to, wire::EventKind::kLost, wire::encode(above));
        const wire::Lost lost{to.number, path, true, false, {}};
        (void)give_locked(to, wire::EventKind::kLost, wire::encode(lost));
      }
      one.told = true;
    }
  }
}

}  // namespace nearbox::agent
