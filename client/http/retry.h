// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <stop_token>

#include "client/http/http_client.h"

// When a request is sent again: a bounded number of times, with growing, jittered pauses, inside the
// caller's deadline.
namespace nearbox::http {

inline constexpr int kMaxAttempts = 4;
inline constexpr std::chrono::milliseconds kFirstBackoff{200};  // doubled each time, half of it random
inline constexpr std::chrono::milliseconds kMaxBackoff{5'000};

std::chrono::milliseconds backoff(int attempt);
// False: stopped, or the deadline would pass first (then it does not wait).
bool pause_for(std::chrono::milliseconds time, Deadline deadline, const std::stop_token& stop);

}  // namespace nearbox::http
