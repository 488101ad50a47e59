// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "fs/core/inode_table.h"

struct fuse_session;

namespace nearbox::fs {

// How invalidations reach the kernel; tests put their own here.
class KernelNotify {
 public:
  virtual ~KernelNotify() = default;
  // `data` false: attributes only. False: this kernel does not know the inode.
  virtual bool inode(Ino ino, bool data) = 0;
  virtual void entry(Ino parent, const std::string& name) = 0;
  virtual void deleted(Ino parent, Ino child, const std::string& name) = 0;
  // The daemon does not need these inodes any more: those that nobody uses may be forgotten.
  struct Unneeded {
    Ino ino = 0, parent = 0;
    std::string name;  // in parent
    bool directory = false;
  };
  virtual void let_go(const std::vector<Unneeded>& inodes) = 0;
  virtual bool epoch() = 0;  // makes every dentry and listing stale at once; false: kernel too old (< 6.16)
};

// Tells the kernel side of one session what it must not believe any more.
//
// Notifications may wait in the kernel for locks that a running request holds. So they leave from threads
// of this class alone; an inode with a parked request is left aside until the request is answered; nothing
// here is held that a request handler needs. An inode that the kernel does not know yet may come with an
// answer that is on its way to it, older than what it was to be told: it is told again, until it knows the
// inode or has given it back. A request may take its lock just before it is known here, and be held by the
// agent afterwards: so an inode has one thread at most in the kernel, one thread always keeps watch outside,
// and when the others are stuck another one is started.
//
// Owns:    kThreads threads, up to kMaxThreads when some are stuck; what is to be invalidated, each inode
//          and name once.
// Threads: any thread may add; nothing blocks.
// Bounds:  kMaxQueued items. More: everything the kernel knows is invalidated instead, which is queued
//          without a bound, since the kernel needs more memory for each name than the queue does.
// Source:  deadlocks and waits: docs/architecture.md, "Invalidation"; linux v6.12 fs/fuse/dir.c
//          (fuse_reverse_inval_entry takes the parent's lock), fs/fuse/inode.c (fuse_reverse_inval_inode
//          waits for locked pages).
class Notifier {
 public:
  static constexpr std::size_t kThreads = 3;
  static constexpr std::size_t kMaxThreads = 8;
  static constexpr std::size_t kMaxQueued = 65536;
  static constexpr std::size_t kMaxUnneeded = 65536;  // more are not told: they are handed in once more
  static constexpr std::size_t kUnneededAtOnce = 256;
  using Name = std::pair<Ino, std::string>;  // in a directory

  struct Source {
    std::function<bool(Ino)> busy;            // has a parked request
    std::function<bool(Ino)> referenced;      // was given to the kernel, which has not given it back
    std::function<std::vector<Ino>()> known;  // all inodes, for the coarse case
    // All names the kernel may believe something wrong of; asked for when it has no epochs.
    std::function<std::vector<Name>()> names;
  };

  Notifier(KernelNotify& kernel, Source source);
  ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  void attr(Ino ino) EXCLUDES(mu_);
  void data(Ino ino) EXCLUDES(mu_);  // of a directory: its cached listing
  void entry(Ino parent, std::string name) EXCLUDES(mu_);
  void deleted(Ino parent, Ino child, std::string name) EXCLUDES(mu_);
  void let_go(KernelNotify::Unneeded one) EXCLUDES(mu_);  // no invalidation: nobody waits for it
  void idle(Ino ino) EXCLUDES(mu_);                       // it has no parked request any more
  void everything() EXCLUDES(mu_);
  // True when all that was added before this call has reached the kernel, what was left aside included. What
  // others add meanwhile is not waited for.
  bool wait_idle(std::chrono::steady_clock::time_point deadline) EXCLUDES(mu_);
  std::uint64_t sent() const { return sent_.load(std::memory_order_relaxed); }  // notifications, ever
  // A thread may be in the kernel: returns when it came back, so end the connection first.
  void stop() EXCLUDES(mu_);

 private:
  struct Item {
    Ino ino = 0;  // of the inode, or of the parent when `name` is set
    std::string name;
    Ino child = 0;
    bool data = false;
    bool deleted = false;
    std::uint64_t ticket = 0;                               // of the oldest notification it stands for
    std::chrono::steady_clock::time_point unknown_since{};  // the kernel said so first
  };
  // An answer that is on its way to the kernel for longer is one that nobody waits for: whoever asked stands
  // still.
  static constexpr std::chrono::milliseconds kOnItsWay{1000};
  struct Group {  // all that concerns one inode
    std::map<std::string, Item> items;
    std::deque<std::string> order;
    bool sending = false;  // a thread is in the kernel for one of them: the group is not in ready_
  };
  enum class Bound { kYes, kNo };
  enum class Ticket { kNew, kHeld };  // whether outstanding_ has it already

  void add(Item item) EXCLUDES(mu_);
  void enqueue_locked(Item item, Bound bound, Ticket ticket) REQUIRES(mu_);
  void everything_locked() REQUIRES(mu_);
  void done_locked(std::uint64_t ticket) REQUIRES(mu_);
  bool reached_locked(std::uint64_t ticket) const REQUIRES(mu_) {
    return outstanding_.empty() || *outstanding_.begin() > ticket;
  }
  void spawn_locked() REQUIRES(mu_);
  void run(const std::stop_token& stop) noexcept EXCLUDES(mu_);
  bool step() EXCLUDES(mu_);
  bool step_unneeded() EXCLUDES(mu_);
  bool may_let_go_locked() const REQUIRES(mu_);
  bool take_locked(Item& item) REQUIRES(mu_);
  bool tell_inode(const Item& item) EXCLUDES(mu_);
  void take_again_locked() REQUIRES(mu_);
  void keep_watch_locked() REQUIRES(mu_);
  bool send(const Item& item) EXCLUDES(mu_);
  void sent_locked(Ino ino) REQUIRES(mu_);
  void queue_everything(std::uint64_t ticket) EXCLUDES(mu_);

  KernelNotify& kernel_;
  const Source source_;
  std::atomic<std::uint64_t> sent_{0};
  base::Mutex mu_;
  base::CondVar wake_, quiet_, watch_;
  std::unordered_map<Ino, Group> groups_ GUARDED_BY(mu_);             // none is empty but while sending
  std::deque<Ino> ready_ GUARDED_BY(mu_);                             // groups nobody sends of
  std::unordered_map<Ino, std::vector<Item>> aside_ GUARDED_BY(mu_);  // by the busy inode
  std::multimap<std::chrono::steady_clock::time_point, Item> again_
      GUARDED_BY(mu_);  // the kernel did not know it; by when to tell it again
  std::deque<KernelNotify::Unneeded> unneeded_ GUARDED_BY(mu_);
  bool letting_go_ GUARDED_BY(mu_) = false;      // a thread tells the kernel of them
  std::size_t count_ GUARDED_BY(mu_) = 0;        // items in groups_
  std::size_t aside_count_ GUARDED_BY(mu_) = 0;  // and in again_
  std::size_t sending_ GUARDED_BY(mu_) = 0;      // threads in the kernel
  std::uint64_t progress_ GUARDED_BY(mu_) = 0;   // how often one came back
  bool everything_ GUARDED_BY(mu_) = false;
  std::uint64_t everything_ticket_ GUARDED_BY(mu_) = 0;
  std::uint64_t last_ticket_ GUARDED_BY(mu_) = 0;
  std::multiset<std::uint64_t> outstanding_ GUARDED_BY(mu_);  // of what the kernel was not told yet
  bool stopped_ GUARDED_BY(mu_) = false;
  std::vector<std::jthread> threads_ GUARDED_BY(mu_);
};

}  // namespace nearbox::fs
