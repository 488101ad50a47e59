// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <poll.h>

#include "tools/agent/watch/watcher_impl.h"

// What is mounted below the roots.
namespace nearbox::agent {

// What came to be mounted below the roots is watched as well; what is there now is for the clients to read.
void Watcher::look_at_mounts() {
  struct pollfd changed {
    mountinfo_.get(), POLLPRI, 0
  };
  if (!mountinfo_) return;
  const bool more = ::poll(&changed, 1, 0) > 0;
  if (!std::exchange(mounts_changed_, false) && !more) return;
  const auto mounts = MountTable::load();
  looker_.set_mounts(mounts);
  const auto used = used_roots();
  for (std::size_t index = 0; index < used.size(); ++index) {
    if (!used.test(index)) continue;
    WatchedRoot at;
    {
      base::MutexLock lock(mu_);
      at.root = roots_[index].root;
      at.source = roots_[index].source;
      at.mounts = roots_[index].mounts;
    }
    const auto now = mounts.ordinary_below(at.root->path);
    std::vector<std::string> differ;
    std::set_symmetric_difference(now.begin(), now.end(), at.mounts.begin(), at.mounts.end(),
                                  std::back_inserter(differ));
    std::vector<std::string> unwatched;
    for (const auto& path : differ) {
      if (auto added = at.source->add_mount(at.root, path); !added) {
        log_.warn("event=no_watch error=\"" + added.error().message() + "\"");
        unwatched.push_back(path);
      }
    }
    base::MutexLock lock(mu_);
    for (const auto& path : differ) {
      own_.push_back({OwnChange{at.root, {relative(path, at.root->path)}, {}, true, {}}, nullptr});
    }
    roots_[index].mounts = now;
    for (auto& path : unwatched) roots_[index].unwatched.push_back(std::move(path));
    std::erase_if(roots_[index].unwatched,
                  [&](const std::string& path) { return !std::binary_search(now.begin(), now.end(), path); });
  }
}

void Watcher::tell_unwatched() {
  base::MutexLock lock(mu_);
  for (auto& root : roots_) {
    for (const auto& path : root.unwatched) {
      versions_.bump_all();
      for (auto& to : root.subscriptions) {
        const wire::Lost lost{to.number, relative(path, root.root->path), true, true};
        (void)give_locked(to, wire::EventKind::kLost, wire::encode(lost));
      }
    }
  }
}

}  // namespace nearbox::agent
