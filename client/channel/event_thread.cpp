// SPDX-License-Identifier: Apache-2.0
#include "client/channel/event_thread.h"

#include <algorithm>
#include <chrono>
#include <pthread.h>

namespace nearbox::channel {
namespace {

std::chrono::steady_clock::time_point wait_step() {
  return std::chrono::steady_clock::now() + base::kIdleWait;
}

}  // namespace

EventThread::EventThread() : thread_([this] { run(); }) {}

void EventThread::post(std::function<void()> fn) {
  base::MutexLock lock(mu_);
  queue_.push_back(std::move(fn));
  wake_.notify_one();
}

void EventThread::stop() {
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void EventThread::run() noexcept {
  pthread_setname_np(pthread_self(), "link-events");
  while (true) {
    std::function<void()> fn;
    {
      base::MutexLock lock(mu_);
      while (queue_.empty() && !stopping_) wake_.wait_until(mu_, wait_step());
      if (queue_.empty()) return;
      fn = std::move(queue_.front());
      queue_.pop_front();
    }
    fn();
  }
}

void ObserverList::add(api::LinkObserver* observer) {
  {
    base::MutexLock lock(mu_);
    entries_.push_back(Entry{observer, Told::kNothing});
  }
  events_.post([this] { tell_all(); });
}

void ObserverList::remove(api::LinkObserver* observer) {
  base::MutexLock lock(mu_);
  std::erase_if(entries_, [&](const Entry& entry) { return entry.observer == observer; });
  if (events_.is_current()) return;
  while (telling_ == observer) told_.wait_until(mu_, wait_step());
}

void ObserverList::up(const wire::Welcome& welcome, bool same_instance) {
  {
    base::MutexLock lock(mu_);
    state_ = Told::kUp;
    welcome_ = welcome;
    same_instance_ = same_instance;
  }
  tell_all();
}

void ObserverList::down(const base::Error& why) {
  {
    base::MutexLock lock(mu_);
    state_ = Told::kDown;
    why_ = why;
  }
  tell_all();
}

void ObserverList::tell_all() {
  while (tell_one()) {
  }
}

// Tells one observer that does not know the present state yet; false: all know it.
bool ObserverList::tell_one() {
  api::LinkObserver* observer = nullptr;
  wire::Welcome welcome;
  base::Error why;
  Told state{};
  bool same = false;
  {
    base::MutexLock lock(mu_);
    const auto it = std::find_if(entries_.begin(), entries_.end(),
                                 [&](const Entry& e) REQUIRES(mu_) { return e.told != state_; });
    if (it == entries_.end()) return false;
    // One that comes to a link that is up knows nothing of the instance before.
    same = it->told != Told::kNothing && same_instance_;
    it->told = state_;
    observer = telling_ = it->observer;
    state = state_;
    welcome = welcome_;
    why = why_;
  }
  if (state == Told::kUp) {
    observer->on_up(welcome, same);
  } else {
    observer->on_down(why);
  }
  base::MutexLock lock(mu_);
  telling_ = nullptr;
  told_.notify_all();
  return true;
}

}  // namespace nearbox::channel
