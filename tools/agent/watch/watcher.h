// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/changes.h"
#include "tools/agent/event_log.h"
#include "tools/agent/roots.h"
#include "tools/agent/versions.h"
#include "tools/agent/watch/done_ops.h"
#include "tools/agent/watch/looker.h"
#include "tools/agent/watch/mount_probe.h"
#include "tools/agent/watch/own_writes.h"
#include "tools/agent/watch/storms.h"

namespace nearbox::agent {

// Between two rounds of looks, or two reads of events: as many times as long as the work just done, so that a
// build pays little for being watched, and names that it touches several times are looked at once.
inline constexpr int kPauseFor = 32;
inline constexpr std::chrono::milliseconds kBatch{5};
inline constexpr std::chrono::milliseconds kLongestBatch{100};
inline constexpr std::size_t kLooksAtOnce = 512;          // then the kernel's queue is read again
inline constexpr std::chrono::milliseconds kReadFor{20};  // then what was read is looked at
inline constexpr std::size_t kMaxOwnChanges = 64 * 1024;  // of this agent, not told to others yet
inline constexpr std::size_t kMaxPutOff = 64;             // of one operation's time
inline constexpr std::size_t kMaxWatchCalls = 1024;       // watch() and barrier() waiting
inline constexpr std::size_t kMaxQueuedBytes =
    48 << 20;  // 2 M events in the kernel: then no names are looked at
inline constexpr std::chrono::seconds kWatchDeadline{60};
inline constexpr std::chrono::milliseconds kLostAgain{500};  // at most so often, but at barriers
inline constexpr std::chrono::seconds kIncompleteAgain{5};   // how often what is not watched is read again
inline constexpr std::chrono::seconds kLongestAgain{320};    // where that is everything
inline constexpr std::chrono::seconds kForeignAgain{10};     // how often the clients read what others change
inline constexpr std::size_t kMaxLooksAgain = 1000;          // of a barrier, at what operations overtake

// What an operation of this agent changed, for the clients that did not ask for it.
struct OwnChange {
  RootPtr root;
  std::vector<std::string> paths;  // relative
  wire::Attr attr;                 // of the node
  bool made = false;               // a directory that nobody knows
  std::vector<wire::NodeId> dirs;  // whose names changed
};

// Watches the trees that clients work on and tells each client what changed there.
//
// Owns:    its thread, started by the first watch(), and the kernel's queues, which are closed when the
//          last watch ends: the thread then sleeps.
// Threads: any may call. All looking and telling is done by its thread; mu_ is held while a client's log
//          is written to (which is memory), never across a look.
// Bounds:  those of Coalescer, Storms and the sources. A client that does not take its events gets one kLost
//          for what it missed instead; what overflows otherwise is one kLost for every root, and every
//          version counts as changed.
// Order:   states that were looked at later are told later. An operation of this agent is told to its own
//          client by OpDone alone, unless a look ran beside it: then the look is done again, and what was
//          seen before the OpDone is not told after it.
class Watcher {
 public:
  using Clock = std::chrono::steady_clock;
  struct Limits {
    std::size_t dirs = kMaxDirs;
    std::size_t queued_bytes = kMaxQueuedBytes;
    std::size_t names_per_dir = kMaxNamesPerDir;
  };
  explicit Watcher(base::Logger& log) : Watcher(log, Versions::process(), Limits{}) {}
  Watcher(base::Logger& log, Versions& versions, const Limits& limits);
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  // Tells `log` of changes below a root, until forget(owner). Once more: answers the same.
  // Errors:  ETIMEDOUT, EBUSY, ESHUTDOWN. That nothing can be watched is no error but kNone.
  base::Result<wire::WatchReply> watch(const void* owner, EventLog& log, std::uint32_t number,
                                       const RootPtr& root, Clock::time_point deadline) EXCLUDES(mu_);
  // `number` 0: for all roots of the owner.
  // Errors:  EOPNOTSUPP: this root, or none, is watched; else as above.
  base::Result<wire::BarrierReply> barrier(const void* owner, std::uint32_t number,
                                           Clock::time_point deadline) EXCLUDES(mu_);
  // What else is mounted below a root, and how it is watched.
  wire::MountsReply mounts(const RootPtr& root) EXCLUDES(mu_);
  // Nothing of the owner is used when it returns, and its calls have returned or will at once: ESHUTDOWN.
  void forget(const void* owner) EXCLUDES(mu_);

  // An operation of `owner`: begins; is applied and has its version; has its OpDone recorded by `append`,
  // after which its client is told nothing that was looked at before; was recorded.
  std::uint64_t op_begins() const { return rounds_.load(); }
  void op_applied(const void* owner, OwnChange change) EXCLUDES(mu_);
  void op_recorded(const void* owner, const OwnChange& change, const std::function<void()>& append)
      EXCLUDES(mu_);
  void op_told(std::uint64_t begun, OwnChange change) EXCLUDES(mu_);
  // While one exists, an operation of `owner` writes this node: what a look beside it shows without anybody
  // else having changed the content or a name is half of its result, and told to its client when it has
  // ended, or by a barrier. Afterwards op_told().
  class Writing {
   public:
    Writing(Watcher& watcher, const void* owner, wire::NodeId node);
    ~Writing();
    Writing(const Writing&) = delete;
    Writing& operator=(const Writing&) = delete;

   private:
    friend class Watcher;
    Watcher& watcher_;
    const void* const owner_;
    const wire::NodeId node_;
    const std::uint64_t version_;
    std::vector<Seen> put_off_;  // under the watcher's lock; kMaxPutOff
  };
  // This agent made a directory (absolute path), and perhaps others below it, by other means.
  void directory_made(const std::string& path) EXCLUDES(mu_);
  // Its thread, or one of its threads, waits for a file system and cannot be ended now.
  bool stuck() { return probe_.stuck(); }
  // Its thread is at a watch() or barrier(): what a test waits for that has it stand still there.
  bool answering() EXCLUDES(mu_) {
    base::MutexLock lock(mu_);
    return served_ != nullptr;
  }
  MountProbe& probe() { return probe_; }
  OwnWrites& own_writes() { return own_writes_; }
  // Somebody watches: without, those above need not be called.
  bool watching() const { return versions_.enabled(); }

 private:
  struct Subscription {
    const void* owner;
    EventLog* log;
    std::uint32_t number;
    bool behind = false;  // told nothing until its client has taken what is there
  };
  // What is mounted, told from another one that came to the same place.
  struct MountedNow {
    Mounted at;
    std::uint64_t unique = 0;
    auto operator<=>(const MountedNow&) const = default;
  };
  struct Unwatched {
    std::string path;  // absolute
    bool foreign = false;
    bool told = false;  // that it is there
  };
  struct WatchedRoot {
    RootPtr root;  // empty: free
    WatchSource* source = nullptr;
    std::vector<MountedNow> mounts;    // below it
    std::vector<Unwatched> unwatched;  // those of them that are foreign, or came later and cannot be watched
    std::vector<Subscription> subscriptions;
  };
  struct Call;
  struct Own {
    OwnChange change;
    const void* except;  // owner who knows it already
  };
  class Sink;

  base::Result<void> post(const std::shared_ptr<Call>& call, Clock::time_point deadline) EXCLUDES(mu_);
  void wake() const;

  // The thread.
  void run(const std::stop_token& stop) noexcept;
  void step();
  void wait();
  bool read_sources(std::size_t max_reads);
  void read_queued();
  void skip_queued(WatchSource& source);
  void serve_calls() EXCLUDES(mu_);
  void add_watch(Call& call) EXCLUDES(mu_);
  base::Result<std::size_t> add_root(const RootPtr& root) EXCLUDES(mu_);
  void do_barrier(Call& call) EXCLUDES(mu_);
  void drop_unused() EXCLUDES(mu_);
  void load_mounts();
  std::vector<MountedNow> mounted_below(const std::string& directory);
  void look_at_mounts() EXCLUDES(mu_);
  void look_at_mounts_of(std::size_t index) EXCLUDES(mu_);
  void tell_unwatched() EXCLUDES(mu_);
  void tell_foreign(std::chrono::milliseconds wait) EXCLUDES(mu_);
  bool round(bool everything);
  void look_at_waiting(Clock::time_point now, bool everything, std::vector<Seen>& gone);
  void look_at_own() EXCLUDES(mu_);
  void look_at_one(const Own& own, Findings& out);
  void look(std::vector<Coalescer::Item>& items, Findings& out);
  void tell(std::vector<Seen>& seen, const void* except = nullptr) EXCLUDES(mu_);
  void tell_locked(Subscription& to, std::size_t index, const std::vector<Seen>& seen,
                   std::vector<bool>& overtaken) REQUIRES(mu_);
  bool put_off_locked(const void* owner, const Seen& seen) REQUIRES(mu_);
  void look_at_put_off() EXCLUDES(mu_);
  void look_again(const Seen& seen);
  void tell_lost_dirs(const std::vector<LostDir>& lost) EXCLUDES(mu_);
  void tell_lost(std::size_t index, const wire::Lost& lost) EXCLUDES(mu_);
  void tell_storms(bool all) EXCLUDES(mu_);
  bool give_locked(Subscription& to, wire::EventKind kind, wire::Bytes body) REQUIRES(mu_);
  void everything_lost(const char* why);
  void retry_unwatched();
  bool incomplete() const { return inotify_ && inotify_->incomplete(); }
  void check_roots();
  RootSet used_roots() EXCLUDES(mu_);
  // `path` below `directory`, "" when it is not.
  static std::string relative(const std::string& path, const std::string& directory);

  base::Logger& log_;
  Versions& versions_;
  const Limits limits_;
  const base::UniqueFd wake_;
  std::atomic<std::uint64_t> rounds_{0};  // odd while one runs
  base::Mutex mu_;
  base::CondVar answered_;
  std::vector<WatchedRoot> roots_ GUARDED_BY(mu_);  // changed by the thread alone, but subscriptions
  std::vector<std::shared_ptr<Call>> calls_ GUARDED_BY(mu_);
  std::shared_ptr<Call> served_ GUARDED_BY(mu_);  // by the thread, now
  std::vector<Own> own_ GUARDED_BY(mu_);
  bool own_lost_ GUARDED_BY(mu_) = false;
  DoneOps done_;  // all but now() under mu_
  OwnWrites own_writes_;
  std::vector<Writing*> writing_ GUARDED_BY(mu_);  // as many as there are threads for it
  std::vector<Seen> put_off_ GUARDED_BY(mu_);      // of those that have ended
  bool puts_off_ = true;                           // of the thread: no barrier is being answered
  bool forgot_ GUARDED_BY(mu_) = false;
  bool stopping_ GUARDED_BY(mu_) = false;

  // Of the thread.
  std::unique_ptr<WatchSource> fanotify_;
  std::unique_ptr<WatchSource> inotify_;
  Coalescer names_;
  Looker looker_;
  Storms storms_;
  Clock::time_point last_round_{};
  Clock::time_point last_heard_{};  // that events were read
  Clock::duration pause_ = kBatch;  // after that
  bool overflowed_ = false;
  const char* why_lost_ = "";
  bool check_roots_ = false;
  Clock::time_point incomplete_told_{};
  std::chrono::seconds incomplete_again_ = kIncompleteAgain;
  Clock::time_point lost_told_{};
  base::UniqueFd mountinfo_;
  bool mounts_changed_ = false;
  MountTable mounts_;
  std::uint64_t mounts_loaded_ = 0;  // how often
  bool any_foreign_ = false;         // below a root
  Clock::time_point foreign_told_{};
  MountProbe probe_;

  std::jthread thread_ GUARDED_BY(mu_);  // last: it uses the others
};

}  // namespace nearbox::agent
