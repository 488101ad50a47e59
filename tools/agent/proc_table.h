// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "client/base/log.h"
#include "client/base/result.h"
#include "client/channel/mux_server.h"
#include "client/wire/messages.h"
#include "tools/agent/start_marker.h"

namespace nearbox::agent {

// Processes of one session: started in their own session and process group with the sandbox user's
// login environment, their output kept in bounded rings with offsets.
//
// Owns:    the processes' pipes or pty, their rings, one poll thread for all of them, one feeder
//          thread an attached client (kMaxAttaches; four a process, a fifth ends the oldest).
// Threads: any; on_exit runs on the poll thread, once a process, after its exit was known and its
//          output was read to the end (or 1 s after the exit, when a grandchild holds the pipes);
//          not any more once the destructor has begun. It may call back, but not block. No
//          responder is called under a lock. The destructor ends the attaches' calls from its own
//          thread (a send() that waits must then return) and takes up to 3 s.
// Bounds:  kMaxProcs processes (those whose exit was delivered go first), ring_bytes each (default
//          1 MiB, 64 KiB to 64 MiB, 1 GiB together), 64 KiB or one message of stdin queued.
// Ring full: while a client is attached, or within the session's grace after it was (attach_grace),
//          the command's pipes are not read, so it blocks as on a stopped terminal; afterwards, and
//          for background commands, the oldest bytes go and the next attach is told the gap.
// Left:    background commands run on after the table, and grandchildren after their command; what
//          they write is then discarded (proc_orphans.h). If the agent is killed there is nobody to
//          do that, and their next write gets SIGPIPE.
class ProcTable {
 public:
  using ExitFn = std::function<void(const wire::ProcExit&)>;
  // What an exit record says of the events before it.
  struct Settled {
    std::uint64_t instance = 0;
    std::uint64_t seq = 0;  // 0: not known
  };
  struct Options {
    std::uint32_t default_ring_bytes = 1024 * 1024;
    std::uint32_t attach_grace_ms = 120'000;
    std::string sandbox_user;             // whom an empty ProcStart.user means; "": find out (login_env.h)
    std::uint64_t child_nofile_soft = 0;  // RLIMIT_NOFILE commands get: what the agent was started with
                                          // before it raised its own; 0: as the agent has now
    std::shared_ptr<StartMarkers> start_marks;  // of all sessions; none: nothing is marked
    std::string child_cgroup_procs;  // cgroup.procs that commands enter, the one the agent left; "": none
    // A barrier, before an exit is told to who asked for it. On a feeder's thread; takes 2 s at most.
    std::function<Settled()> settle;
  };
  ProcTable(const Options& options, ExitFn on_exit, base::Logger& log);
  ~ProcTable();  // foreground groups get HUP, after 2 s KILL; background ones stay

  // ENOENT: no such user, cwd or program (with text; through a login shell a missing program is
  // exit code 127); EAGAIN: limit; EPERM: another user, and the agent is not root. Same `proc`
  // again: same answer; ESTALE: an agent process before this one began to start it. Blocks until the program
  // is executed, a few ms.
  base::Result<wire::ProcReply> start(const wire::ProcStart& request);
  // Streams output from the offset until exit and end of output; never blocks the caller: the table
  // feeds the responder from a thread of its own. What lies before the offset counts as consumed.
  // An early one waits there for its start. Ends with ENOENT unknown, EINVAL offset past the end, EAGAIN
  // limit, ECANCELED one attach too many (attach again) or the table's end.
  void attach(const wire::ProcAttach& request, channel::ResponderPtr responder);
  // Answers when the bytes are in the pipe (EPIPE: the process closed stdin or has none; ENOENT
  // unknown; EAGAIN too many calls wait). `accepted` may lie before the end of what was sent, when
  // the queue was full or bytes before it are missing: the rest is to be sent again from there.
  void input(const wire::ProcInput& request, channel::ResponderPtr responder);
  // ESRCH once the exit is final; until then the group's number is kept.
  base::Result<void> signal(const wire::ProcSignal& request);
  base::Result<void> resize(const wire::ProcResize& request);  // ENOTTY without a pty
  wire::ProcListReply list() const;
  void consumed(const wire::ProcConsumed& note);
  void forget(const wire::ProcForget& note);
  // A client connected (as it is at first) or the last one went: stops or starts the grace clock.
  void set_connected(bool connected);
  std::size_t running() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nearbox::agent
