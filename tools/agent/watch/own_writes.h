// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/messages.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxOwnCloses = 4096;  // that the source has not come to; further ones count

// Own writes that inotify does not take for somebody else's. It does not say whose a change was, and merges
// equal events that follow one another: the MODIFY of another writer can hide in one of ours, whatever is
// compared or counted. So ours raise none: bytes written by io_submit(2) raise no MODIFY. What is left is the
// CLOSE_WRITE; it is made to lie between two marks in the source's own queue, and the one that is found
// between them is ours.
//
// A writer that raises MODIFY is seen whenever it writes. One that does not (maps, io_submit) is seen by its
// own CLOSE_WRITE, unless that comes in the same microseconds, between the marks.
//
// Threads: any for write() and close(); the source's for the others.
// Source:  merging: linux v6.1 fs/notify/inotify/inotify_fsnotify.c, event_compare(). No MODIFY: fs/aio.c,
//          aio_write(), and LimitsTest AsynchronousWritesCountFromTheClose; a kernel that raises one makes
//          own writes count as changes again, no more. IN_IGNORED follows inotify_rm_watch(2) in the queue.
class OwnWrites {
 public:
  // From now on marks go to this queue, until end().
  void begin(int inotify) EXCLUDES(mu_);
  void end() EXCLUDES(mu_);
  // Otherwise write() and close() need not be called.
  bool wanted() const { return wanted_.load(std::memory_order_relaxed); }

  // As pwrite(2), but quiet. Errors: ENOSYS: not here; nothing was written.
  static base::Result<std::size_t> write(int fd, wire::ByteView data, std::uint64_t offset);
  // Closes what only write() wrote to: `name` in `dir`.
  void close(base::UniqueFd fd, int dir, const std::string& name) EXCLUDES(mu_);

  // An IN_IGNORED. True: it was a mark.
  bool mark(int wd) EXCLUDES(mu_);
  // A CLOSE_WRITE of this name, in the order of the queue. True: it is an own one.
  bool own_close(wire::NodeId dir, std::string_view name) EXCLUDES(mu_);
  // Events were lost, and marks with them.
  void lost() EXCLUDES(mu_);

 private:
  struct Close {
    wire::NodeId dir;
    std::string name;
    bool seen = false;
  };
  using Number = std::uint64_t;
  bool put_mark(Number close, bool first) EXCLUDES(mu_);
  void forget_locked() REQUIRES(mu_);

  std::atomic<bool> wanted_{false};
  base::Mutex mu_;  // rank: leaf; two system calls on the queue under it
  int inotify_ GUARDED_BY(mu_) = -1;
  base::UniqueFd object_ GUARDED_BY(mu_);  // what marks are watches of
  Number next_ GUARDED_BY(mu_) = 1;
  std::unordered_map<int, std::pair<Number, bool>> marks_ GUARDED_BY(mu_);  // on their way; true: the first
  std::unordered_map<Number, Close> closes_ GUARDED_BY(mu_);  // whose first mark was not read yet
  std::unordered_map<Number, Close> begun_ GUARDED_BY(mu_);   // as many as operations at a time
};

}  // namespace nearbox::agent
