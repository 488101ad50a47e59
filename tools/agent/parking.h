// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/timers.h"

namespace nearbox::agent {

// Holds work that a fault point stops, without a thread: looked at every 20 ms, resumed when the
// point is off or the work no longer wanted. Without fault points nothing is ever parked.
//
// Owns:    the parked functions, dropped by close().
// Threads: any; resume functions run on the timer thread and must not block.
class Parking : public std::enable_shared_from_this<Parking> {
 public:
  struct Item {
    std::string point;
    std::string subject;
    std::function<bool()> cancelled;
    std::function<void()> resume;
  };
  explicit Parking(base::Timers& timers) : timers_(timers) {}

  // False when the point is off (or the parking closed): nothing was taken, go on.
  bool park_if_held(Item& item) EXCLUDES(mu_);
  // Drops what is parked; no function runs afterwards.
  void close() EXCLUDES(mu_, run_mu_);
  std::size_t size() EXCLUDES(mu_);

 private:
  void schedule_locked() REQUIRES(mu_);
  void look() EXCLUDES(mu_, run_mu_);

  base::Timers& timers_;
  base::Mutex run_mu_;  // held while resume functions run; before mu_
  base::Mutex mu_;
  std::vector<Item> items_ GUARDED_BY(mu_);
  bool scheduled_ GUARDED_BY(mu_) = false;
  bool closed_ GUARDED_BY(mu_) = false;
};

}  // namespace nearbox::agent
