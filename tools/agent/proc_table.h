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

namespace nearbox::agent {

// Processes of one session: started in their own session and process group with the sandbox user's
// login environment, their output kept in bounded rings with offsets.
//
// Owns:    the processes' pipes or pty, their rings, one poll thread for all of them.
// Threads: any; on_exit runs on the poll thread, once a process, after its exit was known and its
//          output was read to the end (or 1 s after the exit, when a grandchild holds the pipes).
// Bounds:  kMaxProcs processes, ring_bytes each (default 1 MiB, 64 KiB to 64 MiB), 64 KiB stdin queued.
// Ring full: while a client is attached, or within the session's grace after it was (attach_grace),
//          the command's pipes are not read, so it blocks as on a stopped terminal; afterwards, and
//          for background commands, the oldest bytes go and the next attach is told the gap.
class ProcTable {
 public:
  using ExitFn = std::function<void(const wire::ProcExit&)>;
  struct Options {
    std::uint32_t default_ring_bytes = 1024 * 1024;
    std::uint32_t attach_grace_ms = 120'000;
    std::string sandbox_user;             // whom an empty ProcStart.user means; "": find out (login_env.h)
    std::uint64_t child_nofile_soft = 0;  // RLIMIT_NOFILE commands get: what the agent was started with
                                          // before it raised its own; 0: as the agent has now
    std::string child_cgroup_procs;  // cgroup.procs that commands enter, the one the agent left; "": none
  };
  ProcTable(const Options& options, ExitFn on_exit, base::Logger& log);
  ~ProcTable();  // foreground groups get HUP, then KILL; background ones stay

  // ENOENT: no such user, cwd or program (with text); EAGAIN: limit. Same `proc` again: same answer.
  base::Result<wire::ProcReply> start(const wire::ProcStart& request);
  // Streams output from the offset until exit and end of output; never blocks the caller: the table
  // feeds the responder from a thread of its own.
  void attach(const wire::ProcAttach& request, channel::ResponderPtr responder);
  // Answers when the bytes are in the pipe (EPIPE: the process closed stdin; ENOENT unknown).
  void input(const wire::ProcInput& request, channel::ResponderPtr responder);
  base::Result<void> signal(const wire::ProcSignal& request);
  base::Result<void> resize(const wire::ProcResize& request);
  wire::ProcListReply list() const;
  void consumed(const wire::ProcConsumed& note);
  void forget(const wire::ProcForget& note);
  // A client connected or the last one went: starts or stops the grace clock of ring_full.
  void set_connected(bool connected);
  std::size_t running() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nearbox::agent
