// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "client/base/mutex.h"

namespace nearbox::daemon {

// Turns a completion into something a client thread can wait for, with a deadline. The completion may
// come after the waiter has gone: both share the state.
class Waiter {
 public:
  std::function<void(int)> completion() const {
    return [state = state_](int error) {
      base::MutexLock lock(state->mu);
      state->error = error;
      state->done = true;
      state->cv.notify_all();
    };
  }
  // The completion's errno, or ETIMEDOUT.
  int wait(std::chrono::steady_clock::time_point deadline) const {
    auto& state = *state_;
    base::MutexLock lock(state.mu);
    while (!state.done) {
      if (!state.cv.wait_until(state.mu, deadline) && !state.done) return ETIMEDOUT;
    }
    return state.error;
  }

 private:
  struct State {
    base::Mutex mu;  // rank: leaf
    base::CondVar cv;
    bool done GUARDED_BY(mu) = false;
    int error GUARDED_BY(mu) = 0;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace nearbox::daemon
