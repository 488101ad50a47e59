// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/base/timers.h"
#include "fs/core/inode_table.h"
#include "sync/engine/event_stream.h"

namespace nearbox::fs {

struct OpLogOptions {
  std::uint64_t max_bytes = wire::kMaxOpBytesInFlight;     // sent and not acknowledged
  std::size_t max_records = 16384;                         // the same, as a count
  std::size_t max_waiting = 8192;                          // not admitted yet; more are refused with ENOSPC
  std::uint64_t max_waiting_bytes = 256ull * 1024 * 1024;  // the same, in data bytes
  std::chrono::milliseconds deadline = std::chrono::seconds(30);   // until the caller is answered ETIMEDOUT
  std::chrono::milliseconds root_retry = std::chrono::seconds(1);  // between attempts to open the root again
};

// Renames of directories by us, over all sessions of one tree. While one is under way a path may be wrong by
// the time it arrives, so a failure then is no statement about the file. An operation that they overtook
// again and again holds new ones back until it is done: it would never arrive else.
//
// Threads: any. `go` of begin() runs there or in release(), without a lock.
// Bounds:  kMaxWaitingRenames wait; one more is not held back.
class DirRenames {
 public:
  // Counts the rename and runs `go`, which sends it: now, or when nothing holds renames back.
  void begin(std::function<void()> go) EXCLUDES(mu_);
  void end() {  // after the mirror was brought up to date
    epoch_.fetch_add(1);
    pending_.fetch_sub(1);
  }
  void hold() EXCLUDES(mu_);
  void release() EXCLUDES(mu_);
  std::size_t waiting() const EXCLUDES(mu_);

  std::uint64_t epoch() const { return epoch_.load(); }
  // None was under way at any time since epoch() was `epoch`. One that waits is not under way.
  bool quiet_since(std::uint64_t epoch) const { return pending_.load() == 0 && epoch_.load() == epoch; }

 private:
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<std::uint64_t> pending_{0};
  mutable base::Mutex mu_;  // leaf
  std::size_t holders_ GUARDED_BY(mu_) = 0;
  std::vector<std::function<void()>> waiting_ GUARDED_BY(mu_);
};
inline constexpr std::size_t kMaxWaitingRenames = 1024;

// The ordered record of everything the local side does to the sandbox.
//
// Four steps that stay apart: *record* (submit gives the number), *queue* (batches go out, again after a
// reconnect, until acknowledged), *apply* (the caller's `applied` brings the mirror up to date) and
// *reply* (the caller's `reply` answers the kernel).
//
// Owns:    every operation from submit() until its fate is known.
// Threads: any thread may submit; nothing blocks. `applied` runs on the link thread of the event, in the
//          order of events; `reply` there, or on the timer thread at the deadline. Each runs exactly
//          once; no lock is held meanwhile; they may call submit().
// Errors:  in OpDone.error: what the agent said; ETIMEDOUT; ENOSPC no room to wait; ESTALE a kept file
//          went with its agent; ESHUTDOWN after close().
// Bounds:  OpLogOptions. What does not fit waits in order, so numbers are given in order of submission.
// An operation whose deadline passed is answered ETIMEDOUT, but stays recorded until its fate is known:
// `applied` then still runs. One that was never sent is dropped instead.
class OpLog {
 public:
  using Fn = std::function<void(const wire::OpDone&)>;
  using RootPath = std::function<std::string()>;  // absolute path of the root all operations lie below

  OpLog(api::AgentLink& link, base::Timers& timers, base::Logger& log, RootPath root_path,
        OpLogOptions options = {});
  ~OpLog();
  OpLog(const OpLog&) = delete;
  OpLog& operator=(const OpLog&) = delete;

  // Takes acknowledgements from `events`; before events.start().
  void attach(sync::EventStream& events);
  void on_op_done(const wire::OpDone& done);

  // op.op_id is given here; op.root is replaced after the agent was restarted.
  void submit(wire::Op op, Fn applied, Fn reply);

  std::size_t unacknowledged() const;  // waiting ones included
  // Calls fn when everything submitted before now is acknowledged (at once when nothing is).
  void when_drained(std::function<void()> fn);
  // Ends everything with ESHUTDOWN; nothing runs afterwards.
  void close();

  Orphans& orphans();
  DirRenames& dir_renames();
  // Tells the agent that an unlinked file it kept is not used any more.
  void forget_orphan(std::uint64_t orphan);

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

// The order key of a node, and of a name in a directory.
std::uint64_t node_key(const wire::NodeId& id);
std::uint64_t name_key(const wire::NodeId& dir, std::string_view name);
inline constexpr std::uint64_t kTreeKey = 1;  // shared by all, exclusive where paths of others change

}  // namespace nearbox::fs
