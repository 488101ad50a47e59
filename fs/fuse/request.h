// SPDX-License-Identifier: Apache-2.0
#pragma once

#define FUSE_USE_VERSION 314

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <sys/uio.h>
#include <unordered_map>
#include <vector>

#include <fuse3/fuse_lowlevel.h>

#include "client/base/log.h"
#include "client/base/mutex.h"

namespace nearbox::fs {

// How many requests of a session are in somebody's hands.
class AliveCount {
 public:
  void add() EXCLUDES(mu_) {
    base::MutexLock lock(mu_);
    ++count_;
  }
  void sub() EXCLUDES(mu_) {
    base::MutexLock lock(mu_);
    if (--count_ == 0) none_.notify_all();
  }
  // False when the deadline passed first.
  bool wait_none(std::chrono::steady_clock::time_point deadline) EXCLUDES(mu_) {
    base::MutexLock lock(mu_);
    while (count_ != 0) {
      if (!none_.wait_until(mu_, deadline)) return count_ == 0;
    }
    return true;
  }

 private:
  base::Mutex mu_;  // leaf
  base::CondVar none_;
  std::size_t count_ GUARDED_BY(mu_) = 0;
};

// One kernel request that must be answered exactly once.
//
// Owns:    the right to answer. An answer empties it; one that is destroyed unanswered answers EIO and
//          logs, since the caller would hang otherwise.
// Threads: used by one thread at a time.
// Errors:  the answering functions say false when the kernel does not want the answer any more (the
//          request was interrupted, the mount is gone): references the answer carried do not count.
class Request {
 public:
  Request(fuse_req_t req, const char* op, std::uint64_t ino, base::Logger& log, AliveCount& alive)
      : req_(req), op_(op), ino_(ino), log_(&log), alive_(&alive) {
    alive_->add();
  }
  Request(Request&& from) noexcept;
  Request& operator=(Request&&) = delete;
  Request(const Request&) = delete;
  ~Request();

  bool error(int err);
  bool entry(const fuse_entry_param& entry);
  bool create(const fuse_entry_param& entry, const fuse_file_info& info);
  bool attr(const struct stat& st, double timeout);
  bool readlink(const std::string& target);
  bool buffer(const char* data, std::size_t size);
  bool pieces(const std::vector<iovec>& parts);
  bool write(std::size_t count);
  bool statfs(const struct statvfs& st);
  void none();

  fuse_req_t raw() const { return req_; }
  pid_t pid() const { return fuse_req_ctx(req_)->pid; }  // the thread that asks; 0: of another pid namespace
  const char* op() const { return op_; }
  std::uint64_t ino() const { return ino_; }

 private:
  bool sent(int result);
  fuse_req_t take();

  fuse_req_t req_ = nullptr;
  const char* op_ = "";
  std::uint64_t ino_ = 0;
  base::Logger* log_ = nullptr;
  AliveCount* alive_ = nullptr;
};

class ParkedTable;
class Session;

// What libfuse hands back with each request of a session.
struct SessionHandle {
  ParkedTable* parked = nullptr;
  Session* session = nullptr;
};

// The requests of one session that wait for something: by number, so that a completion, a deadline and
// an interrupt can race and one of them answers.
//
// An interrupt ends what only looks. A change was sent and cannot be called back: a program that was told
// EINTR would do it again. Changes therefore wait for their answer or deadline, unless the caller is being
// killed and sees no answer any more.
//
// Owns:    each parked Request until take().
// Threads: any; mu_ is a leaf and not held while answering.
// Bounds:  kMaxParked; above it park() answers EAGAIN (the kernel's max_background keeps below).
class ParkedTable {
 public:
  using Id = std::uint64_t;  // never reused
  using TimePoint = std::chrono::steady_clock::time_point;

  static constexpr std::size_t kMaxParked = 65536;

  // `busy` are the inodes whose kernel locks the request holds while it waits: the notifier leaves those
  // alone until then. 0: none. Returns 0 when the request was answered at once (interrupted, closed, full).
  enum class Kind { kLook, kChange };
  Id park(Request request, Kind kind, TimePoint deadline, std::uint64_t busy1, std::uint64_t busy2 = 0)
      EXCLUDES(mu_);
  // The request, unless somebody answered it already.
  std::optional<Request> take(Id id) EXCLUDES(mu_);
  // Answers ETIMEDOUT to all whose deadline passed, EINTR to interrupted changes whose caller is killed.
  void expire(TimePoint now) EXCLUDES(mu_);
  // Answers all with `error`, and from now on each new one.
  void close(int error) EXCLUDES(mu_);

  bool contains(Id id) const EXCLUDES(mu_);
  bool busy(std::uint64_t ino) const EXCLUDES(mu_);
  std::size_t size() const EXCLUDES(mu_);
  // Called, without a lock, when an inode stopped being busy.
  void on_idle(std::function<void(std::uint64_t ino)> fn) { on_idle_ = std::move(fn); }

 private:
  struct Entry {
    Request request;
    TimePoint deadline;
    std::uint64_t busy[2];
    Kind kind = Kind::kLook;
    pid_t pid = 0;             // the caller's thread; 0: of another pid namespace
    bool armed = false;        // park() is done with it: anybody may take it
    bool interrupted = false;  // before it was armed
  };
  static void interrupted(fuse_req_t req, void* data);
  void interrupt(Id id) EXCLUDES(mu_);
  void unbusy(const Entry& entry) EXCLUDES(mu_);

  mutable base::Mutex mu_;
  std::map<Id, Entry> entries_ GUARDED_BY(mu_);
  std::unordered_map<std::uint64_t, std::uint32_t> busy_ GUARDED_BY(mu_);
  Id next_ GUARDED_BY(mu_) = 1;
  int closed_ GUARDED_BY(mu_) = 0;
  std::function<void(std::uint64_t)> on_idle_;
};

}  // namespace nearbox::fs
