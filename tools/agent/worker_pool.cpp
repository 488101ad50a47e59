// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/worker_pool.h"

#include <atomic>
#include <exception>
#include <pthread.h>
#include <system_error>

namespace nearbox::agent {
namespace {

constexpr std::chrono::seconds kIdle{5};
std::atomic<std::size_t> all_threads{0};

}  // namespace

WorkerPool::WorkerPool(std::string name, std::size_t max_threads, std::size_t lane_share)
    : name_(std::move(name)), max_threads_(max_threads), lane_share_(lane_share) {}

WorkerPool::~WorkerPool() { stop(); }

void WorkerPool::stop() {
  std::list<Slot> slots;
  std::deque<Job> dropped;
  std::unordered_map<Lane, LaneState> dropped_lanes;
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    dropped.swap(queue_);
    dropped_lanes.swap(lanes_);
    waiting_ = 0;
    slots.splice(slots.end(), slots_);
    wake_.notify_all();
  }
  slots.clear();  // joins
}

bool WorkerPool::submit(std::function<void()> job, Lane lane) {
  base::MutexLock lock(mu_);
  if (stopping_ || queue_.size() + waiting_ >= kMaxPoolQueue) return false;
  LaneState& state = lanes_[lane];
  if (state.admitted >= lane_share_) {
    state.waiting.push_back(std::move(job));
    ++waiting_;
    return true;
  }
  ++state.admitted;
  queue_.push_back({std::move(job), lane});
  if (idle_ >= queue_.size()) {
    wake_.notify_one();
  } else {
    grow_locked();
    wake_.notify_one();
  }
  return true;
}

void WorkerPool::grow_locked() {
  for (auto it = slots_.begin(); it != slots_.end();) {
    it = it->finished ? slots_.erase(it) : std::next(it);
  }
  if (live_ >= max_threads_ || (live_ > 0 && all_threads.load() >= kMaxAgentThreads)) return;
  Slot& slot = slots_.emplace_back();
  try {
    slot.thread = std::jthread([this, self = &slot] { run(self); });
  } catch (const std::system_error&) {
    slots_.pop_back();  // the threads there are go on; with none, the next submit tries again
    return;
  }
  ++live_;
  ++all_threads;
}

// A job of the lane ended: the next of it may run. The thread that comes from it looks at the queue.
void WorkerPool::leave_locked(Lane lane) {
  const auto it = lanes_.find(lane);
  if (it == lanes_.end()) return;  // stopped meanwhile
  LaneState& state = it->second;
  if (!state.waiting.empty()) {
    queue_.push_back({std::move(state.waiting.front()), lane});
    state.waiting.pop_front();
    --waiting_;
  } else if (--state.admitted == 0) {
    lanes_.erase(it);
  }
}

void WorkerPool::run(Slot* self) noexcept {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  mu_.lock();
  while (!stopping_) {
    if (queue_.empty()) {
      ++idle_;
      const bool woken = wake_.wait_until(mu_, std::chrono::steady_clock::now() + kIdle);
      --idle_;
      if (!woken && queue_.empty()) break;
      continue;
    }
    auto job = std::move(queue_.front());
    queue_.pop_front();
    mu_.unlock();
    job.run();
    job.run = nullptr;  // what it holds goes outside the lock
    mu_.lock();
    leave_locked(job.lane);
  }
  self->finished = true;
  --live_;
  --all_threads;
  mu_.unlock();
}

}  // namespace nearbox::agent
