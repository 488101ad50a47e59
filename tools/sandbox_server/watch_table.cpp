// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/watch_table.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {

PolledWatcher::PolledWatcher(DirWatcher watcher, EventJson to_json)
    : watcher_(std::move(watcher)),
      to_json_(std::move(to_json)),
      stop_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_([this]() noexcept { run(); }) {}

PolledWatcher::~PolledWatcher() {
  const std::uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one);
  if (thread_.joinable()) thread_.join();
}

void PolledWatcher::run() noexcept {
  pthread_setname_np(pthread_self(), "envd-watch");
  while (true) {
    pollfd fds[2] = {{watcher_.fd(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    constexpr int kRoundMs = 60000;
    if (::poll(fds, 2, kRoundMs) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0 || !take_some()) return;
  }
}

// False: the watcher is broken.
bool PolledWatcher::take_some() {
  auto fresh = watcher_.read();
  std::vector<nlohmann::json> texts;
  if (fresh) {
    for (const auto& event : *fresh) texts.push_back(to_json_(event));
  }
  base::MutexLock lock(mu_);
  if (!fresh) {
    state_ = fresh.error();
  } else if (events_.size() + texts.size() > kMaxHeldEvents) {
    state_ = base::errno_error(EOVERFLOW, "fsnotify: queue or buffer overflow");
    events_.clear();
  } else {
    std::move(texts.begin(), texts.end(), std::back_inserter(events_));
  }
  return state_.ok();
}

base::Result<std::vector<nlohmann::json>> PolledWatcher::drain() {
  base::MutexLock lock(mu_);
  if (!state_) return state_.error();
  return std::exchange(events_, {});
}

base::Result<std::string> WatchTable::add(DirWatcher watcher, EventJson to_json) {
  constexpr std::size_t kIdBytes = 10;  // envd's ids are "w" and 20 letters
  const auto id = "w" + hex(random_bytes(kIdBytes));
  base::MutexLock lock(mu_);
  if (table_.size() >= limit_) return base::errno_error(EMFILE, "error creating watcher");
  table_.emplace(id, std::make_shared<PolledWatcher>(std::move(watcher), std::move(to_json)));
  return id;
}

std::shared_ptr<PolledWatcher> WatchTable::find(const std::string& id) {
  base::MutexLock lock(mu_);
  const auto found = table_.find(id);
  return found == table_.end() ? nullptr : found->second;
}

bool WatchTable::remove(const std::string& id) {
  std::shared_ptr<PolledWatcher> last;  // its thread is joined after the lock
  base::MutexLock lock(mu_);
  const auto found = table_.find(id);
  if (found == table_.end()) return false;
  last = std::move(found->second);
  table_.erase(found);
  return true;
}

}  // namespace nearbox::sandbox_server
