// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "client/api/agent_link.h"
#include "client/base/mutex.h"

namespace nearbox::channel {

// Runs functions one after another on one thread.
//
// Owns:    its thread, joined by stop(), which runs what was posted before it.
// Threads: any may post.
// Bounds:  its users': a call has at most one end, a connection one beginning and one loss.
class EventThread {
 public:
  EventThread();
  ~EventThread() { stop(); }
  void post(std::function<void()> fn) EXCLUDES(mu_);
  void stop() EXCLUDES(mu_);
  bool is_current() const { return std::this_thread::get_id() == thread_.get_id(); }

 private:
  void run() noexcept EXCLUDES(mu_);
  base::Mutex mu_;  // rank: leaf
  base::CondVar wake_;
  std::deque<std::function<void()>> queue_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
  std::jthread thread_;  // last: it uses the others
};

// Those who watch a link, each told only what it does not know already.
//
// Threads: up() and down() on the event thread; the rest any.
class ObserverList {
 public:
  explicit ObserverList(EventThread& events) : events_(events) {}
  void add(api::LinkObserver* observer) EXCLUDES(mu_);
  void remove(api::LinkObserver* observer) EXCLUDES(mu_);
  void up(const wire::Welcome& welcome, bool same_instance) EXCLUDES(mu_);
  void down(const base::Error& why) EXCLUDES(mu_);

 private:
  enum class Told { kNothing, kUp, kDown };
  struct Entry {
    api::LinkObserver* observer;
    Told told;
  };
  void tell_all() EXCLUDES(mu_);
  bool tell_one() EXCLUDES(mu_);

  EventThread& events_;
  base::Mutex mu_;  // rank: leaf
  base::CondVar told_;
  std::vector<Entry> entries_ GUARDED_BY(mu_);
  api::LinkObserver* telling_ GUARDED_BY(mu_) = nullptr;
  // The present state.
  Told state_ GUARDED_BY(mu_) = Told::kDown;
  wire::Welcome welcome_ GUARDED_BY(mu_);
  bool same_instance_ GUARDED_BY(mu_) = false;
  base::Error why_ GUARDED_BY(mu_) = base::errno_error(ENOTCONN, "not connected yet");
};

}  // namespace nearbox::channel
