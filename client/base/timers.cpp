// SPDX-License-Identifier: Apache-2.0
#include "client/base/timers.h"

#include <pthread.h>

namespace nearbox::base {

Timers::Timers() : thread_([this](const std::stop_token& stop) { run(stop); }) {}

Timers::~Timers() {
  thread_.request_stop();
  wake_.notify_all();
}

Timers::Id Timers::at(TimePoint when, std::function<void()> fn) {
  const std::lock_guard lock(mu_);
  const Id id = next_++;
  const auto it = queue_.emplace(when, std::make_pair(id, std::move(fn)));
  ids_.emplace(id, when);
  if (it == queue_.begin()) wake_.notify_all();
  return id;
}

bool Timers::cancel(Id id) {
  const std::lock_guard lock(mu_);
  const auto found = ids_.find(id);
  if (found == ids_.end()) return false;
  for (auto [it, end] = queue_.equal_range(found->second); it != end; ++it) {
    if (it->second.first == id) {
      queue_.erase(it);
      break;
    }
  }
  ids_.erase(found);
  return true;
}

void Timers::run(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "timers");
  std::unique_lock lock(mu_);
  while (!stop.stop_requested()) {
    if (queue_.empty()) {
      wake_.wait(lock, stop, [this] { return !queue_.empty(); });
      continue;
    }
    const auto first = queue_.begin()->first;
    if (std::chrono::steady_clock::now() < first) {
      wake_.wait_until(lock, stop, first,
                       [this, first] { return queue_.empty() || queue_.begin()->first < first; });
      continue;
    }
    auto node = queue_.extract(queue_.begin());
    ids_.erase(node.mapped().first);
    lock.unlock();
    node.mapped().second();
    node = {};
    lock.lock();
  }
}

}  // namespace nearbox::base
