// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "client/base/mutex.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxAgentThreads = 768;   // of all pools together; past it pools stop growing
inline constexpr std::size_t kMaxPoolQueue = 1 << 20;  // jobs waiting in one pool

// Runs jobs on up to `max_threads` threads, made when needed and ended after 5 s without work. At most
// `lane_share` jobs of one lane run at a time, so that jobs which hang on one file system leave threads
// to those of others.
//
// Owns:    its threads, joined by the destructor; jobs not begun by then are dropped unrun.
// Threads: any may submit; jobs may submit, and must not destroy the pool. Jobs run in the order
//          of submission, several at once; those of a lane at its share wait for one of its own.
// Errors:  submit() is false when the queue is full or the pool is stopping: the job is not taken.
class WorkerPool {
 public:
  using Lane = std::uint64_t;  // any number; jobs without a lane of their own share 0
  WorkerPool(std::string name, std::size_t max_threads)
      : WorkerPool(std::move(name), max_threads, max_threads) {}
  WorkerPool(std::string name, std::size_t max_threads, std::size_t lane_share);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  bool submit(std::function<void()> job, Lane lane = 0) EXCLUDES(mu_);
  // Drops what waits and joins. Idempotent; afterwards submit() is false.
  void stop() EXCLUDES(mu_);

 private:
  struct Slot {
    std::jthread thread;
    bool finished = false;
  };
  struct Job {
    std::function<void()> run;
    Lane lane = 0;
  };
  struct LaneState {
    std::size_t admitted = 0;                   // in queue_ or running: at most lane_share_
    std::deque<std::function<void()>> waiting;  // for one of those to end
  };
  void run(Slot* self) noexcept;
  void leave_locked(Lane lane) REQUIRES(mu_);
  void grow_locked() REQUIRES(mu_);

  const std::string name_;
  const std::size_t max_threads_;
  const std::size_t lane_share_;
  base::Mutex mu_;  // rank: leaf
  base::CondVar wake_;
  std::deque<Job> queue_ GUARDED_BY(mu_);                      // may run as soon as there is a thread
  std::unordered_map<Lane, LaneState> lanes_ GUARDED_BY(mu_);  // those with jobs
  std::size_t waiting_ GUARDED_BY(mu_) = 0;                    // jobs in lanes
  std::list<Slot> slots_ GUARDED_BY(mu_);
  std::size_t idle_ GUARDED_BY(mu_) = 0;
  std::size_t live_ GUARDED_BY(mu_) = 0;
  bool stopping_ GUARDED_BY(mu_) = false;
};

}  // namespace nearbox::agent
