// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <list>
#include <string>
#include <thread>

#include "client/base/mutex.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxAgentThreads = 768;   // of all pools together; past it pools stop growing
inline constexpr std::size_t kMaxPoolQueue = 1 << 20;  // jobs waiting in one pool

// Runs jobs on up to `max_threads` threads, made when needed and ended after 5 s without work.
//
// Owns:    its threads, joined by the destructor; jobs not begun by then are dropped unrun.
// Threads: any may submit; jobs may submit, and must not destroy the pool. Jobs run in the order
//          of submission, several at once.
// Errors:  submit() is false when the queue is full or the pool is stopping: the job is not taken.
class WorkerPool {
 public:
  WorkerPool(std::string name, std::size_t max_threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  bool submit(std::function<void()> job) EXCLUDES(mu_);
  // Drops what waits and joins. Idempotent; afterwards submit() is false.
  void stop() EXCLUDES(mu_);

 private:
  struct Slot {
    std::jthread thread;
    bool finished = false;
  };
  void run(Slot* self) noexcept;
  void grow_locked() REQUIRES(mu_);

  const std::string name_;
  const std::size_t max_threads_;
  base::Mutex mu_;  // rank: leaf
  base::CondVar wake_;
  std::deque<std::function<void()>> queue_ GUARDED_BY(mu_);
  std::list<Slot> slots_ GUARDED_BY(mu_);
  std::size_t idle_ GUARDED_BY(mu_) = 0;
  std::size_t live_ GUARDED_BY(mu_) = 0;
  bool stopping_ GUARDED_BY(mu_) = false;
};

}  // namespace nearbox::agent
