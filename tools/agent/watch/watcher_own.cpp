// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tools/agent/fs_path.h"
#include "tools/agent/watch/watcher_impl.h"

// What operations of this agent changed, for the clients that did not ask for it.
namespace nearbox::agent {

void Watcher::op_applied(const void* owner, OwnChange change) {
  base::MutexLock lock(mu_);
  const bool others = std::any_of(roots_.begin(), roots_.end(), [&](const WatchedRoot& root) {
    return std::any_of(root.subscriptions.begin(), root.subscriptions.end(),
                       [&](const Subscription& s) { return s.owner != owner; });
  });
  if (!others) return;
  own_lost_ = own_lost_ || own_.size() >= kMaxOwnChanges;
  if (!own_lost_) own_.push_back({std::move(change), owner});
  if (own_.size() == 1 || own_lost_) wake();
}

void Watcher::op_recorded(const void* owner, const OwnChange& change, const std::function<void()>& append) {
  std::vector<std::string> names;
  for (const auto& path : change.paths) names.push_back(path.substr(path.rfind('/') + 1));
  base::MutexLock lock(mu_);
  done_.record(owner, change.dirs, names, {wire::identity(change.attr)});
  append();
}

Watcher::Writing::Writing(Watcher& watcher, const void* owner, wire::NodeId node)
    : watcher_(watcher), owner_(owner), node_(node), version_(watcher.versions_.of(node)) {
  base::MutexLock lock(watcher_.mu_);
  watcher_.writing_.push_back(this);
}

Watcher::Writing::~Writing() {
  base::MutexLock lock(watcher_.mu_);
  std::erase(watcher_.writing_, this);
  if (put_off_.empty()) return;
  std::move(put_off_.begin(), put_off_.end(), std::back_inserter(watcher_.put_off_));
  watcher_.wake();
}

// True: it is told when the operation has ended.
bool Watcher::put_off_locked(const void* owner, const Seen& seen) {
  const auto& attr = seen.state.attr;
  const auto writing = std::find_if(writing_.begin(), writing_.end(), [&](const Writing* one) {
    return one->owner_ == owner && one->node_ == wire::identity(attr) && attr.version == one->version_;
  });
  if (!puts_off_ || writing == writing_.end() || (*writing)->put_off_.size() >= kMaxPutOff) return false;
  (*writing)->put_off_.push_back(seen);
  return true;
}

// Those that have ended; for a barrier also those that have not.
void Watcher::look_at_put_off() {
  std::vector<Seen> again;
  {
    base::MutexLock lock(mu_);
    again.swap(put_off_);
    for (auto* writing : writing_) {
      if (puts_off_) break;
      std::move(writing->put_off_.begin(), writing->put_off_.end(), std::back_inserter(again));
      writing->put_off_.clear();
    }
  }
  for (const auto& seen : again) look_again(seen);
}

void Watcher::op_told(std::uint64_t begun, OwnChange change) {
  if (begun % 2 == 0 && rounds_.load() == begun) return;
  base::MutexLock lock(mu_);
  own_lost_ = own_lost_ || own_.size() >= kMaxOwnChanges;
  if (!own_lost_) own_.push_back({std::move(change), nullptr});
  wake();
}

void Watcher::directory_made(const std::string& path) {
  base::MutexLock lock(mu_);
  for (const auto& root : roots_) {
    if (!root.root) continue;
    auto inside = relative(path, root.root->path);
    if (inside.empty()) continue;
    own_lost_ = own_lost_ || own_.size() >= kMaxOwnChanges;
    if (!own_lost_) own_.push_back({OwnChange{root.root, {std::move(inside)}, {}, true, {}}, nullptr});
  }
  wake();
}

void Watcher::look_at_own() {
  std::vector<Own> own;
  {
    base::MutexLock lock(mu_);
    own.swap(own_);
    if (std::exchange(own_lost_, false)) {
      overflowed_ = true;
      why_lost_ = "too many operations";
    }
  }
  for (const auto& one : own) {
    Findings found;
    found.for_all = one.except == nullptr;
    const auto as_of = done_.now();
    look_at_one(one, found);
    for (auto& seen : found.there) seen.as_of = as_of;
    for (auto& seen : found.gone) seen.as_of = as_of;
    tell(found.there, one.except);
    tell_lost_dirs(found.lost);
    tell(found.gone, one.except);
  }
}

void Watcher::look_at_one(const Own& own, Findings& out) {
  bool shown = false;
  TreeViews views(fanotify_.get(), inotify_.get());
  for (const auto& path : own.change.paths) {
    const auto& top = own.change.root->path;
    if (mounts_.any_foreign() && mounts_.foreign(top == "/" ? "/" + path : top + "/" + path)) continue;
    auto place = open_place(own.change.root->dir.get(), path);
    auto dir = place ? stat_fd(place->dir.get()) : base::Result<Stat>(base::errno_error(ENOENT));
    if (!dir) continue;
    const auto node = node_of(*dir);
    if (fanotify_) fanotify_->entered(place->dir.get(), node, {}, {});
    const auto roots = views.roots_of(node);
    if (roots.none()) continue;
    const auto flags = kHintLook | (own.change.made ? kHintFresh | kHintArrived : 0U);
    Looker::Place at{place->dir.get()};
    looker_.look_at(views, at, {node, path.empty() ? "" : place->name, flags, {}, {}}, roots, out);
    looker_.look_at(views, at, {node, "", kHintLook, {}, {}}, roots, out);
  }
  for (const auto& seen : out.there) {
    shown =
        shown || (seen.state.attr.ino == own.change.attr.ino && seen.state.attr.dev == own.change.attr.dev);
  }
  // Renamed since: by its node, then.
  if (shown || own.change.attr.ino == 0) return;
  if (versions_.of(wire::identity(own.change.attr)) > own.change.attr.version) return;  // told since
  wire::NameState state;
  state.dir = {own.change.attr.dev, own.change.attr.ino};
  state.attr = own.change.attr;
  out.there.push_back({std::move(state), used_roots()});
}

}  // namespace nearbox::agent
