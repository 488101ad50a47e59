// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

namespace nearbox::base {

// Runs functions at points of the steady clock, on one thread of its own.
//
// Owns:    its thread, joined by the destructor; what has not run by then never runs.
// Threads: any thread may call. Functions run one after another and must not block.
class Timers {
 public:
  using Id = std::uint64_t;
  using TimePoint = std::chrono::steady_clock::time_point;
  Timers();
  ~Timers();
  Timers(const Timers&) = delete;
  Timers& operator=(const Timers&) = delete;

  Id at(TimePoint when, std::function<void()> fn);
  Id after(std::chrono::milliseconds delay, std::function<void()> fn) {
    return at(std::chrono::steady_clock::now() + delay, std::move(fn));
  }
  // True: it will not run. False: it ran, or is running now in the timer thread.
  bool cancel(Id id);

 private:
  void run(const std::stop_token& stop) noexcept;

  std::mutex mu_;  // rank: leaf
  std::condition_variable_any wake_;
  std::multimap<TimePoint, std::pair<Id, std::function<void()>>> queue_;
  std::unordered_map<Id, TimePoint> ids_;
  Id next_ = 1;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace nearbox::base
