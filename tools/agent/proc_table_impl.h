// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/unique_fd.h"
#include "tools/agent/proc_ring.h"
#include "tools/agent/proc_spawn.h"
#include "tools/agent/proc_stdin.h"
#include "tools/agent/proc_table.h"
#include "tools/agent/start_marker.h"

// The inside of ProcTable, in three parts: proc_table.cpp answers calls, proc_loop.cpp is the poll
// thread, proc_feed.cpp streams output to attached clients.
namespace nearbox::agent {

using Clock = std::chrono::steady_clock;

inline constexpr std::uint32_t kMinRingBytes = 64 * 1024;
inline constexpr std::uint32_t kMaxRingBytes = 64 * 1024 * 1024;
inline constexpr std::uint64_t kMaxRingTotal = 1024ull * 1024 * 1024;  // of all rings of a table
inline constexpr std::size_t kMaxAttaches = 512;                       // feeder threads of a table
inline constexpr std::size_t kMaxAttachesEach = 4;  // of a process; one more ends the oldest
inline constexpr std::size_t kMaxLeftovers = 256;   // descriptors that others hold after an exit
inline constexpr std::size_t kReadBytes = 64 * 1024;
inline constexpr std::chrono::milliseconds kDrainTime{1000};    // for output after the exit
inline constexpr std::chrono::milliseconds kHangupTime{2000};   // between HUP and KILL
inline constexpr std::chrono::milliseconds kKillTime{1000};     // for KILL to work
inline constexpr std::chrono::milliseconds kFeedTick{250};      // a feeder looks for a cancel
inline constexpr std::chrono::milliseconds kEarlyWait{30'000};  // an attach waits for its start
inline constexpr std::chrono::milliseconds kNoPidfdTick{20};    // exits are asked for, without pidfds
inline constexpr std::chrono::milliseconds kPtyRetry{50};       // a terminal that nobody has open
inline constexpr std::chrono::milliseconds kIdleTick{10'000};
inline constexpr std::chrono::milliseconds kStartWait{2 * kExecTimeoutMs};

// A descriptor in the poll thread's epoll set. Only that thread closes it, so a read or write there
// needs no lock.
struct Watched {
  base::UniqueFd fd;
  std::uint32_t armed = 0;  // events asked for; 0: not in the set
};

// One attached client. `over` once: who sets it ends the call.
struct Attach {
  channel::ResponderPtr responder;
  std::uint64_t position = 0;
  bool settle = false;
  bool over = false;
};

// One process. The table's mu_ guards all of it, except as Watched says.
struct Proc {
  explicit Proc(std::uint32_t ring_bytes) : ring(ring_bytes) {}

  std::uint64_t proc = 0;
  std::uint64_t serial = 0;  // ours, unlike proc never used twice
  std::uint32_t flags = 0;
  std::string command;
  pid_t pid = -1;
  Watched pidfd, in, out, err;
  ProcRing ring;
  StdinQueue input;
  base::CondVar changed;                          // output, exit, start, end of an attach
  std::vector<std::shared_ptr<Attach>> attaches;  // the newest last
  bool starting = true;
  bool failed = false;  // did not start: nobody finds it in the table any more
  base::Error why_failed;
  bool exited = false;     // its status is known; not reaped before `final`: the zombie keeps the
                           // number of process and group ours, so that signals cannot go astray
  bool final = false;      // no output comes after this
  bool exit_sent = false;  // a client was given all output and the exit
  bool forgotten = false;
  std::int32_t code = 0;
  std::int32_t signal = 0;
  Clock::time_point hold_until{};      // a full ring blocks the process until then, attached or not
  Clock::time_point drain_deadline{};  // moves on while the ring is full
  Clock::time_point pty_retry{};       // not read before: nobody has the terminal open just now
  std::size_t owed_bytes = 0;          // in the pipes at its exit: its own, read whatever the deadline

  bool pty() const { return (flags & wire::kProcPty) != 0; }
  bool background() const { return (flags & wire::kProcBackground) != 0; }
  bool running() const { return !starting && !exited && !failed; }
};
using ProcPtr = std::shared_ptr<Proc>;

struct ProcTable::Impl {
  Impl(const Options& options, ExitFn on_exit, base::Logger& log);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // proc_table.cpp
  base::Result<wire::ProcReply> start(const wire::ProcStart& request) EXCLUDES(mu_);
  base::Result<ProcPtr> reserve(const wire::ProcStart& request, bool& fresh) EXCLUDES(mu_);
  base::Error fail_start(const ProcPtr& proc, base::Error why) EXCLUDES(mu_);
  wire::ProcReply finish_start(const ProcPtr& proc, Spawned spawned) EXCLUDES(mu_);
  bool make_room(std::uint64_t ring_bytes) REQUIRES(mu_);
  ProcPtr find(std::uint64_t proc) const REQUIRES(mu_);
  wire::ProcReply reply_of(const Proc& proc) const REQUIRES(mu_);
  void wake() const;
  void hang_up() EXCLUDES(mu_);
  std::set<pid_t> foreground_groups(bool leader_alive) EXCLUDES(mu_);
  void leave_rest() EXCLUDES(mu_);

  // proc_feed.cpp
  void attach(const wire::ProcAttach& request, channel::ResponderPtr responder) EXCLUDES(mu_);
  int check_attach(const Proc& proc, std::uint64_t offset) const REQUIRES(mu_);
  std::shared_ptr<Attach> join_proc(Proc& proc, const std::shared_ptr<Attach>& attach) REQUIRES(mu_);
  int add_feeder(ProcPtr proc, std::uint64_t number, const std::shared_ptr<Attach>& attach) REQUIRES(mu_);
  ProcPtr await_start(std::uint64_t number, const std::shared_ptr<Attach>& attach) noexcept EXCLUDES(mu_);
  void feed(Proc& proc, Attach& attach) noexcept EXCLUDES(mu_);
  void put_exit(const Proc& proc, const Attach& attach, wire::Bytes& batch) EXCLUDES(mu_);
  enum class Fed { kMore, kLast, kOver };
  Fed next_batch(Proc& proc, Attach& attach, wire::Bytes& batch) EXCLUDES(mu_);
  void fill_batch(Proc& proc, Attach& attach, wire::Bytes& batch) REQUIRES(mu_);
  void finish_attach(Proc& proc, Attach& attach, Fed how) EXCLUDES(mu_);
  void join_finished_feeders() EXCLUDES(mu_);
  void end_feeders() EXCLUDES(mu_);

  // proc_loop.cpp
  void loop(const std::stop_token& stop) noexcept;
  int prepare() EXCLUDES(mu_);  // what to watch; the milliseconds to wait
  void arm(Proc& proc, Clock::time_point now, Clock::time_point& next) REQUIRES(mu_);
  void set_events(const Proc& proc, Watched& watched, std::uint32_t kind, std::uint32_t events);
  void close_watched(const Proc& proc, Watched& watched);
  bool holds(const Proc& proc, Clock::time_point now) const REQUIRES(mu_);
  bool paused(const Proc& proc, Clock::time_point now) const REQUIRES(mu_);
  void on_event(std::uint64_t token, std::uint32_t events) EXCLUDES(mu_);
  void read_output(Proc& proc, Watched& from, wire::ProcStream stream) EXCLUDES(mu_);
  void write_input(Proc& proc) EXCLUDES(mu_);
  void write_some(Proc& proc, StdinQueue::Answers& answers) REQUIRES(mu_);
  void write_end(Proc& proc, StdinQueue::Answers& answers) REQUIRES(mu_);
  void look_for_exit(Proc& proc) REQUIRES(mu_);
  void pass_time() EXCLUDES(mu_);
  void finalize(Proc& proc, StdinQueue::Answers& answers) REQUIRES(mu_);
  void keep_leftover(const Proc& proc, Watched& watched) REQUIRES(mu_);
  void read_leftover(std::uint64_t serial) EXCLUDES(mu_);

  const Options options_;
  const ExitFn on_exit_;
  base::Logger& log_;
  base::UniqueFd epoll_;
  base::UniqueFd wake_;
  bool broken_ = false;  // set by the constructor alone

  mutable base::Mutex mu_;  // rank: above responders' locks, which are never taken under it
  std::map<std::uint64_t, ProcPtr> procs_ GUARDED_BY(mu_);      // by the client's number
  std::map<std::uint64_t, ProcPtr> by_serial_ GUARDED_BY(mu_);  // the poll thread's
  std::uint64_t next_serial_ GUARDED_BY(mu_) = 1;
  bool connected_ GUARDED_BY(mu_) = true;
  bool closing_ GUARDED_BY(mu_) = false;
  base::CondVar some_exit_;  // for hang_up()
  base::CondVar arrived_;    // a process, for await_start()
  struct Feeder {
    std::atomic<bool> done{false};
    std::shared_ptr<Attach> attach;
    std::jthread thread;
  };
  std::list<Feeder> feeders_ GUARDED_BY(mu_);

  // The poll thread's own.
  std::map<std::uint64_t, base::UniqueFd> leftovers_;  // by serial; read and discarded until their end
  std::vector<std::byte> scratch_ = std::vector<std::byte>(kReadBytes);
  Clock::time_point last_pass_ = Clock::now();

  std::jthread poll_thread_;  // last: it uses the others
};

// Gives answers; never under a lock of ours.
void give(StdinQueue::Answers& answers);

}  // namespace nearbox::agent
