// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <string>

#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/base/timers.h"
#include "client/channel/mux_server.h"
#include "tools/agent/session.h"
#include "tools/agent/worker_pool.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxSessions = 64;
inline constexpr std::chrono::seconds kHelloTimeout{5};
inline constexpr std::size_t kEndThreads = 8;  // sessions that are taken down at one time

// The agent behind its listener: says hello, finds sessions, forgets them after their grace.
//
// Owns:    the session table, the timer thread and the threads that take sessions down: that waits for
//          what the session does on file systems, and nobody else may.
// Threads: serve() on one thread a connection; tick() on the main thread, never waits.
// Bounds:  kMaxSessions, those being taken down included; a client above gets EBUSY.
class Agent {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    wire::Token token{};
    std::string build;
    Identity who;
    std::uint64_t features = 0;
    std::chrono::seconds session_grace{120};
    std::chrono::seconds linger{300};
    channel::ServeOptions serve;
    ProcTable::Options procs;
  };
  Agent(Options options, base::Logger& log);
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  // Serves one connection until it ends; calls `admitted` when its client showed the token, which it
  // must by `hello_by`.
  void serve(channel::Carrier& carrier, const std::function<void()>& admitted = {},
             Clock::time_point hello_by = Clock::now() + kHelloTimeout) EXCLUDES(mu_);
  // Forgets what is past its time. True: nobody has needed this agent for `linger`.
  bool tick(Clock::time_point now) EXCLUDES(mu_);
  // How soon that is to be called again, or when changed_fd() is readable, which this makes it no more.
  std::chrono::milliseconds next_tick() EXCLUDES(mu_);
  int changed_fd() const { return changed_.get(); }
  // Breaks all connections; their serve() calls return soon. New ones are refused.
  void stop() EXCLUDES(mu_);
  // Takes all sessions down; after stop(). False: one still waits for a file system at `deadline`.
  bool end_sessions(Clock::time_point deadline) EXCLUDES(mu_);

  std::uint64_t instance() const { return instance_; }
  std::size_t sessions() EXCLUDES(mu_);
  std::size_t ending() EXCLUDES(mu_);  // out of the table, not gone yet

 private:
  struct Entry {
    SessionPtr session;
    bool hung_up = false;
    bool ending = false;  // handed to enders_
  };
  // The session of a hello, attached to `carrier`; nothing past the limits. Waits until one of the
  // same id that is over applies nothing any more.
  SessionPtr find(const wire::Hello& hello, channel::Carrier& carrier, bool& resumed) EXCLUDES(mu_);
  bool keeps(Entry& entry, Clock::time_point now);
  void end_later(SessionPtr session) EXCLUDES(mu_);
  void end(SessionPtr session) EXCLUDES(mu_);

  const Options options_;
  base::Logger& log_;
  const std::uint64_t instance_;
  const base::UniqueFd changed_;  // an eventfd: a connection ended
  base::Timers timers_;
  Watcher watcher_;  // outlives the sessions
  std::atomic<std::size_t> connections_{0};
  base::Mutex mu_;  // rank: before a session's
  std::map<wire::SessionId, Entry> sessions_ GUARDED_BY(mu_);
  Clock::time_point needed_ GUARDED_BY(mu_) = Clock::now();
  bool stopping_ GUARDED_BY(mu_) = false;
  std::size_t ending_ GUARDED_BY(mu_) = 0;
  base::CondVar ended_;
  WorkerPool enders_{"session-end", kEndThreads};  // last: its threads use the others
};

// Fills `into` with random bytes from the kernel; ends the process when there are none to be had.
void random_bytes(void* into, std::size_t size);

}  // namespace nearbox::agent
