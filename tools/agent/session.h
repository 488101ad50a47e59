// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/base/timers.h"
#include "client/channel/carrier.h"
#include "client/wire/messages.h"
#include "tools/agent/event_log.h"
#include "tools/agent/executor.h"
#include "tools/agent/fs_ops.h"
#include "tools/agent/mount_lanes.h"
#include "tools/agent/orphans.h"
#include "tools/agent/parking.h"
#include "tools/agent/passwd.h"
#include "tools/agent/proc_table.h"
#include "tools/agent/pusher.h"
#include "tools/agent/reader.h"
#include "tools/agent/roots.h"
#include "tools/agent/tree_walk.h"
#include "tools/agent/watch/watcher.h"
#include "tools/agent/worker_pool.h"

namespace nearbox::agent {

inline constexpr std::size_t kSmallThreads = 24;   // calls that answer at once, of one session
inline constexpr std::size_t kSmallPerLane = 8;    // of them on one file system (MountLanes)
inline constexpr std::size_t kStreamThreads = 32;  // reads that may wait for credit
inline constexpr std::size_t kStreamsPerLane = 16;
inline constexpr std::size_t kTreeThreads = 4;  // tree calls at one time
inline constexpr std::size_t kMaxSubscriptions = 8;
inline constexpr std::size_t kMaxSessionConnections = 16;

// All that one client has in this agent: it outlives the client's connections.
//
// Owns:    roots, operations, events, kept files, processes, and the threads that work for it.
// Threads: any. The destructor waits for those threads, so the last reference must not be dropped
//          on one of them: jobs hold plain pointers, connections and the session table the owners.
// Bounds:  by its parts. A broken bound poisons the session: it ends, and the client starts anew.
class Session {
 public:
  using Clock = std::chrono::steady_clock;
  Session(const wire::SessionId& id, std::uint64_t instance, const Identity& who,
          const ProcTable::Options& procs, base::Timers& timers, Watcher& watcher, base::Logger& log);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const wire::SessionId& id() const { return id_; }

  // A connection came or went. attach() is false past kMaxSessionConnections.
  bool attach(channel::Carrier* carrier) EXCLUDES(mu_);
  void detach(channel::Carrier* carrier) EXCLUDES(mu_);
  std::size_t connections() EXCLUDES(mu_);
  // When the last connection went; nothing while there is one.
  std::optional<Clock::time_point> alone_since() EXCLUDES(mu_);
  // Breaks its connections: their clients dial again and find out what became of it.
  void drop_connections() EXCLUDES(mu_);

  // Ends it: nothing queued is applied any more.
  void poison(const char* why);
  // Drops the operations that have not begun and waits for those that have. Not on a thread of ours.
  void stop_applying() EXCLUDES(stop_mu_);
  // Ends what runs and joins its threads, commands excepted; calls that come later are refused. Waits for
  // whatever hangs on a file system. Once, and again by the destructor. Not on a thread of ours.
  void close() EXCLUDES(stop_mu_, mu_);
  bool poisoned() const { return poisoned_.load(); }
  // The client said goodbye.
  void set_ended() { ended_.store(true); }
  bool ended() const { return ended_.load(); }

  void confirm(const wire::Confirm& note) EXCLUDES(mu_);
  std::uint64_t nonce() EXCLUDES(mu_);

  void read(wire::Read call, channel::ResponderPtr responder);
  void read_many(wire::ReadMany call, channel::ResponderPtr responder);
  void apply(std::vector<wire::Op> ops);
  void subscribe(const wire::Subscribe& request, const channel::ResponderPtr& responder);
  void tree(const wire::Tree& request, const void* connection, const channel::ResponderPtr& responder);
  void hurry(const wire::TreeHurry& note, const void* connection) EXCLUDES(mu_);
  base::Result<wire::RootReply> open_root(const wire::RootOpen& call);
  base::Result<wire::WatchReply> watch(const wire::Watch& call);
  base::Result<wire::BarrierReply> barrier(const wire::Barrier& call);
  ProcTable::Settled settled();  // a barrier for all that is watched
  base::Result<wire::MountsReply> mounts_below(const wire::Mounts& call);

  bool busy();                    // operations to apply or processes that run
  bool has_background_process();  // one that outlives the session's grace
  void hang_up_foreground();      // HUP to the others

  // The lane of what is done at `path` below a root; of several paths the first that is on another file
  // system than the root itself, since that one may hang.
  WorkerPool::Lane lane(std::uint32_t root, const std::string& path);
  WorkerPool::Lane lane(std::uint32_t root, const std::vector<std::string>& paths);

  ProcTable& procs() { return *procs_; }
  Pusher& pusher() { return pusher_; }
  ReadContext reads() { return {who_, roots, orphans}; }

  RootTable roots;
  OrphanTable orphans;
  EventLog events;
  MountLanes mounts;
  const std::shared_ptr<Parking> parking;
  WorkerPool small;    // calls that never wait for credit
  WorkerPool streams;  // calls that may

 private:
  struct Walking {
    const void* connection;
    std::uint32_t call_id;
    std::shared_ptr<TreeWalk> walk;
  };
  void run_tree(const wire::Tree& request, const void* connection, channel::Responder& responder);
  void record(wire::EventKind kind, wire::Bytes body);
  void run_op(const wire::Op& op);
  OwnChange own_change(const wire::Op& op, const wire::OpDone& done);
  void pump(std::uint64_t after, channel::Responder& responder);
  void pushed(const RootPtr& root, const std::string& path, const Stat* st, bool made);

  const wire::SessionId id_;
  const std::uint64_t instance_;
  const Identity& who_;
  base::Logger& log_;
  Watcher& watcher_;
  std::atomic<bool> poisoned_{false};
  std::atomic<bool> ended_{false};
  base::Mutex stop_mu_;  // rank: before all others; held while stop_applying() waits
  base::Mutex mu_;       // before those of the parts
  std::set<channel::Carrier*> carriers_ GUARDED_BY(mu_);
  Clock::time_point alone_since_ GUARDED_BY(mu_) = Clock::now();
  std::uint64_t nonce_ GUARDED_BY(mu_) = 0;
  std::list<Walking> walks_ GUARDED_BY(mu_);
  std::size_t subscriptions_ GUARDED_BY(mu_) = 0;
  std::atomic<bool> stopping_{false};
  std::unique_ptr<ProcTable> procs_;
  OpContext op_context_;
  Executor executor_;
  Pusher pusher_;
  WorkerPool trees_;
  WorkerPool pumps_;  // last: their threads use the others
};
using SessionPtr = std::shared_ptr<Session>;

}  // namespace nearbox::agent
