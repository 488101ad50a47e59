// SPDX-License-Identifier: Apache-2.0
#include "client/http/retry.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "client/http/random.h"

namespace nearbox::http {

using std::chrono::milliseconds;

milliseconds backoff(int attempt) {
  const auto whole = std::min<milliseconds>(kFirstBackoff * (1 << std::min(attempt, 10)), kMaxBackoff);
  return whole / 2 + milliseconds(static_cast<std::int64_t>(random_u64() % 1000) * whole.count() / 2000);
}

bool pause_for(milliseconds time, Deadline deadline, const std::stop_token& stop) {
  const auto until = std::chrono::steady_clock::now() + time;
  if (until >= deadline) return false;
  std::mutex mu;
  std::condition_variable_any wake;
  std::unique_lock lock(mu);
  wake.wait_until(lock, stop, until, [] { return false; });
  return !stop.stop_requested();
}

}  // namespace nearbox::http
