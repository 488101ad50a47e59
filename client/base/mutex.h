// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <shared_mutex>

// Clang's thread-safety annotations; empty for other compilers.
// Source: clang 14 documentation, ThreadSafetyAnalysis.
#if defined(__clang__)
#define NEARBOX_TSA(x) __attribute__((x))
#else
#define NEARBOX_TSA(x)
#endif
#define CAPABILITY(x) NEARBOX_TSA(capability(x))
#define SCOPED_CAPABILITY NEARBOX_TSA(scoped_lockable)
#define GUARDED_BY(x) NEARBOX_TSA(guarded_by(x))
#define REQUIRES(...) NEARBOX_TSA(requires_capability(__VA_ARGS__))
#define ACQUIRE(...) NEARBOX_TSA(acquire_capability(__VA_ARGS__))
#define RELEASE(...) NEARBOX_TSA(release_capability(__VA_ARGS__))
#define REQUIRES_SHARED(...) NEARBOX_TSA(requires_shared_capability(__VA_ARGS__))
#define ACQUIRE_SHARED(...) NEARBOX_TSA(acquire_shared_capability(__VA_ARGS__))
#define RELEASE_SHARED(...) NEARBOX_TSA(release_shared_capability(__VA_ARGS__))
#define RELEASE_GENERIC(...) NEARBOX_TSA(release_generic_capability(__VA_ARGS__))
#define EXCLUDES(...) NEARBOX_TSA(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS NEARBOX_TSA(no_thread_safety_analysis)

namespace nearbox::base {

// std::mutex with annotations. Its rank is named in docs/locking.md.
class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRE() { mu_.lock(); }
  void unlock() RELEASE() { mu_.unlock(); }
  std::mutex& native() { return mu_; }

 private:
  std::mutex mu_;
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mu) ACQUIRE(mu) : mu_(mu) { mu_.lock(); }
  ~MutexLock() RELEASE() { mu_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mu_;
};

// std::shared_mutex with annotations.
class CAPABILITY("shared_mutex") SharedMutex {
 public:
  void lock() ACQUIRE() { mu_.lock(); }
  void unlock() RELEASE() { mu_.unlock(); }
  void lock_shared() ACQUIRE_SHARED() { mu_.lock_shared(); }
  void unlock_shared() RELEASE_SHARED() { mu_.unlock_shared(); }

 private:
  std::shared_mutex mu_;
};

class SCOPED_CAPABILITY WriterLock {
 public:
  explicit WriterLock(SharedMutex& mu) ACQUIRE(mu) : mu_(mu) { mu_.lock(); }
  ~WriterLock() RELEASE() { mu_.unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex& mu_;
};

class SCOPED_CAPABILITY ReaderLock {
 public:
  explicit ReaderLock(SharedMutex& mu) ACQUIRE_SHARED(mu) : mu_(mu) { mu_.lock_shared(); }
  ~ReaderLock() RELEASE_GENERIC() { mu_.unlock_shared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex& mu_;
};

// How long a thread with nothing to do waits at most: a wake-up that was lost costs time, not life. Longer
// waits would save little: heartbeats are more frequent.
inline constexpr std::chrono::seconds kIdleWait{10};

// A condition variable for Mutex. Every wait has a deadline on the steady clock.
class CondVar {
 public:
  // True when notified (or spuriously woken), false when `deadline` passed.
  bool wait_until(Mutex& mu, std::chrono::steady_clock::time_point deadline) REQUIRES(mu) {
    std::unique_lock<std::mutex> lock(mu.native(), std::adopt_lock);
    const auto status = cv_.wait_until(lock, deadline);
    lock.release();
    return status == std::cv_status::no_timeout;
  }
  void notify_one() noexcept { cv_.notify_one(); }
  void notify_all() noexcept { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace nearbox::base
