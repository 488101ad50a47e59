// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/wire/messages.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxEventLogBytes = 64 * 1024 * 1024;

// The events of one session that its client has not confirmed, numbered densely from 1.
//
// Threads: any; readers wait here while writers append.
// Bounds:  `max_bytes` of encoded events; the append that exceeds it poisons the log: nothing is
//          appended or read any more, and the session must end.
class EventLog {
 public:
  using TagSource = std::uint32_t (*)();
  static std::uint32_t fresh_tag();
  explicit EventLog(std::size_t max_bytes = kMaxEventLogBytes, TagSource tags = fresh_tag)
      : max_bytes_(max_bytes), tags_(tags) {}

  // The number the event got, 0 when the log is poisoned (now or before).
  std::uint64_t append(wire::EventKind kind, wire::Bytes body) EXCLUDES(mu_);

  // ESTALE: event `seq` with that tag is none of this log: a copy of it gave the number to another one, or it
  // was confirmed long since.
  base::Result<void> check(std::uint64_t seq, std::uint32_t tag) EXCLUDES(mu_);

  // Appends to `out` the events after `after`, each as u32 length | Event, up to about `max` bytes,
  // and moves `after` to the last one. Waits until `deadline` for the first; true with nothing
  // taken means the deadline passed or wake() was called since wakes() was `wakes`: whoever looks at what a
  // wake() tells of asks for wakes() before.
  // Errors:  ESTALE: `after` was confirmed already or lies in the future; EOVERFLOW: poisoned.
  base::Result<void> take(std::uint64_t& after, std::size_t max, wire::Bytes& out,
                          std::chrono::steady_clock::time_point deadline, std::uint64_t wakes = 0)
      EXCLUDES(mu_);
  std::uint64_t wakes() EXCLUDES(mu_);

  void confirm(std::uint64_t seq) EXCLUDES(mu_);
  void wake() EXCLUDES(mu_);  // makes waiting takers return
  std::uint64_t last_seq() EXCLUDES(mu_);
  std::uint64_t confirmed() EXCLUDES(mu_);
  bool poisoned() EXCLUDES(mu_);
  std::size_t capacity() const { return max_bytes_; }
  // Bytes of events it still takes, 0 when poisoned.
  std::size_t room() EXCLUDES(mu_);

 private:
  const std::size_t max_bytes_;
  const TagSource tags_;
  base::Mutex mu_;  // rank: leaf
  base::CondVar changed_;
  struct Kept {
    wire::Bytes encoded;
    std::uint32_t tag = 0;
  };
  std::deque<Kept> events_ GUARDED_BY(mu_);          // the first has seq first_
  std::uint32_t confirmed_tag_ GUARDED_BY(mu_) = 0;  // of event first_ - 1
  std::uint64_t first_ GUARDED_BY(mu_) = 1;
  std::size_t bytes_ GUARDED_BY(mu_) = 0;
  std::uint64_t wakes_ GUARDED_BY(mu_) = 0;
  bool poisoned_ GUARDED_BY(mu_) = false;
};

}  // namespace nearbox::agent
