// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>

#include "client/api/agent_link.h"
#include "client/base/mutex.h"
#include "client/base/result.h"

namespace nearbox::daemon {

// Knows whether the link is up and why not: what commands wait for.
//
// Threads: any; the observer's methods run on link threads.
class UpWatch : public api::LinkObserver {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  void on_up(const wire::Welcome& welcome, bool same_instance) noexcept override;
  void on_down(const base::Error& why) noexcept override;
  void dial_failed(const base::Error& error, bool final);
  // A connection stood, but no session: told to who waits until the deadline, since the next attempt
  // may do better; `final` as above.
  void handshake_failed(const base::Error& error, bool final);
  void close();  // ends all waits with ESHUTDOWN

  // Waits until the link is up. While it never was, or when the error is final, a failed attempt after
  // the call began ends the wait; `redial` starts one.
  base::Result<void> wait(Deadline deadline, const std::function<void()>& redial);

 private:
  base::Mutex mu_;  // rank: leaf
  base::CondVar cv_;
  bool up_ GUARDED_BY(mu_) = false;
  bool ever_up_ GUARDED_BY(mu_) = false;
  bool closed_ GUARDED_BY(mu_) = false;
  bool final_ GUARDED_BY(mu_) = false;
  std::uint64_t failures_ GUARDED_BY(mu_) = 0;
  std::optional<base::Error> error_ GUARDED_BY(mu_);
};

}  // namespace nearbox::daemon
