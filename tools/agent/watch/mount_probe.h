// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/base/mutex.h"
#include "tools/agent/worker_pool.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxProbes = 16;  // file systems asked at a time; the others do not answer

inline constexpr std::chrono::milliseconds kProbeWait{200};  // for an answer; then it is taken not to come

// Asks file systems that may not answer, each on a thread of its own.
//
// Owns:    its threads. One that hangs is asked nothing more, and the destructor waits for it: stuck().
// Threads: any.
class MountProbe {
 public:
  using Clock = std::chrono::steady_clock;
  MountProbe() = default;
  ~MountProbe() { pool_.stop(); }

  // Those of the mountpoints that answer until `deadline`. Who was asked kProbeWait ago or earlier
  // and has not answered yet is not waited for.
  std::vector<std::string> answering(const std::vector<std::string>& points, Clock::time_point deadline)
      EXCLUDES(mu_);
  bool stuck() EXCLUDES(mu_);

 private:
  struct Asked {
    Clock::time_point since;
    bool answered = false;
  };
  base::Mutex mu_;  // rank: before the pool's
  base::CondVar changed_;
  std::map<std::string, std::shared_ptr<Asked>> open_ GUARDED_BY(mu_);  // not answered yet
  WorkerPool pool_{"mount-probe", kMaxProbes};                          // last: its threads use the others
};

}  // namespace nearbox::agent
