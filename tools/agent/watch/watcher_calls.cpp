// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fcntl.h>
#include <poll.h>

#include "tools/agent/watch/watcher_impl.h"

// The calls that the watcher's thread answers.
namespace nearbox::agent {

void Watcher::serve_calls() {
  while (true) {
    std::shared_ptr<Call> call;
    {
      base::MutexLock lock(mu_);
      if (calls_.empty()) return;
      call = calls_.front();
      calls_.erase(calls_.begin());
      if (call->given_up) continue;
      served_ = call;
    }
    while (base::fault::active("agent.hold_watch")) (void)::poll(nullptr, 0, 1);
    if (call->log != nullptr) {
      add_watch(*call);
    } else {
      do_barrier(*call);
    }
    base::MutexLock lock(mu_);
    served_.reset();
    call->done = true;
    answered_.notify_all();
  }
}

void Watcher::add_watch(Call& call) {
  look_at_mounts();
  auto index = add_root(call.root);
  base::MutexLock lock(mu_);
  if (call.given_up) {  // its log may be gone
    forgot_ = true;
    return;
  }
  if (!index) {
    call.watch.kind = wire::WatchKind::kNone;
    call.watch.error = index.error().as_errno();
    call.watch.seq = call.log->last_seq();
    return;
  }
  WatchedRoot& root = roots_[*index];
  call.watch.kind = root.source->kind();
  call.watch.directories = root.source->directories();
  if (root.source->incomplete()) call.watch.error = ENOSPC;
  const bool known = std::any_of(root.subscriptions.begin(), root.subscriptions.end(), [&](const auto& s) {
    return s.owner == call.owner && s.number == call.number;
  });
  if (!known) root.subscriptions.push_back({call.owner, call.log, call.number, false});
  call.watch.seq = call.log->last_seq();
}

base::Result<std::size_t> Watcher::add_root(const RootPtr& root) {
  std::size_t index = 0;
  {
    base::MutexLock lock(mu_);
    std::size_t free = roots_.size();
    for (std::size_t i = 0; i < roots_.size(); ++i) {
      if (roots_[i].root && roots_[i].root->node == root->node) return i;
      if (!roots_[i].root) free = std::min(free, i);
    }
    if (free >= kMaxWatchedRoots) return base::errno_error(EMFILE, "watched roots");
    index = free;
  }
  if (!mountinfo_) mountinfo_.reset(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
  load_mounts();
  if (mounts_.foreign(root->path)) return base::errno_error(EOPNOTSUPP, "not of this machine");
  const auto mounted = mounted_below(root->path);
  const bool first = !fanotify_ && !inotify_;
  if (first) versions_.enable();
  Sink sink(*this);
  const auto try_source = [&](std::unique_ptr<WatchSource>& source, auto make) -> base::Result<WatchSource*> {
    const bool made = !source;
    if (made) {
      auto fresh = make();
      if (!fresh) return std::move(fresh).error();
      source = std::move(*fresh);
    }
    source->set_mounts(mounts_);
    auto added = source->add_root(root, index, sink);
    for (auto one = mounted.begin(); added && one != mounted.end(); ++one) {
      if (one->at.foreign || source->kind() == wire::WatchKind::kInotify) continue;  // walked already
      added = source->add_mount(root, one->at.path);
      if (!added) source->remove_root(index);
    }
    if (added) return source.get();
    if (made) source.reset();
    return std::move(added).error();
  };
  auto source = try_source(fanotify_, [this] { return make_fanotify_source(limits_.dirs); });
  if (!source) {
    log_.info("event=no_fanotify error=\"" + source.error().message() + "\"");
    source = try_source(inotify_, make_inotify_source);
  }
  if (!source) {
    log_.warn("event=no_watch error=\"" + source.error().message() + "\"");
    if (first) versions_.disable();
    return std::move(source).error();
  }
  base::MutexLock lock(mu_);
  if (roots_.size() <= index) roots_.resize(index + 1);
  roots_[index] = {root, *source, mounted, {}, {}};
  for (const auto& one : mounted) {
    if (one.at.foreign) roots_[index].unwatched.push_back({one.at.path, true, false});
    any_foreign_ = any_foreign_ || one.at.foreign;
  }
  return index;
}

void Watcher::do_barrier(Call& call) {
  look_at_mounts();
  read_queued();
  if (incomplete()) retry_unwatched();
  const bool all = round(true);
  tell_unwatched();
  base::MutexLock lock(mu_);
  if (!all) {
    call.error = ETIMEDOUT;
    return;
  }
  bool any = false;
  for (auto& root : roots_) {
    for (auto& to : root.subscriptions) {
      if (to.owner != call.owner || (call.number != 0 && to.number != call.number)) continue;
      if (to.behind) {
        to.behind = false;
        (void)give_locked(to, wire::EventKind::kLost, wire::encode(wire::Lost{to.number, "", true, false}));
      }
      call.barrier.seq = std::max(call.barrier.seq, to.log->last_seq());
      any = true;
    }
  }
  if (!any) call.error = EOPNOTSUPP;
}

// Roots that nobody watches any more; without any the kernel's queues are closed.
void Watcher::drop_unused() {
  std::vector<std::size_t> unused;
  bool any = false;
  {
    base::MutexLock lock(mu_);
    if (!std::exchange(forgot_, false)) return;
    for (std::size_t i = 0; i < roots_.size(); ++i) {
      if (!roots_[i].root) continue;
      if (!roots_[i].subscriptions.empty()) {
        any = true;
        continue;
      }
      unused.push_back(i);
      roots_[i].root.reset();
    }
  }
  for (const auto index : unused) {
    if (fanotify_) fanotify_->remove_root(index);
    if (inotify_) inotify_->remove_root(index);
  }
  if (any || (!fanotify_ && !inotify_)) return;
  versions_.disable();
  fanotify_.reset();
  inotify_.reset();
  mountinfo_.reset();
  names_.clear();
  overflowed_ = false;
}

}  // namespace nearbox::agent
