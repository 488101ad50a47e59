// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
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
  virtual void inode(Ino ino, bool data) = 0;  // false: attributes only
  virtual void entry(Ino parent, const std::string& name) = 0;
  virtual void deleted(Ino parent, Ino child, const std::string& name) = 0;
  virtual bool epoch() = 0;  // makes every dentry and listing stale at once; false: kernel too old (< 6.16)
};

// Tells the kernel side of one session what it must not believe any more.
//
// Notifications may wait in the kernel for locks that a running request holds. So they leave from threads
// of this class alone; an inode with a parked request is left aside until the request is answered; and
// nothing here is held that a request handler needs.
//
// Owns:    kThreads threads; the queue of what is to be invalidated, each inode and name once.
// Threads: any thread may add; nothing blocks.
// Bounds:  kMaxQueued items. More: everything the kernel knows is invalidated at once instead.
// Source:  deadlocks and waits: docs/architecture.md, "Invalidation"; linux v6.12 fs/fuse/dir.c
//          (fuse_reverse_inval_entry takes the parent's lock), fs/fuse/inode.c (fuse_reverse_inval_inode
//          waits for locked pages).
class Notifier {
 public:
  static constexpr int kThreads = 2;
  static constexpr std::size_t kMaxQueued = 65536;

  struct Source {
    std::function<bool(Ino)> busy;            // has a parked request
    std::function<std::vector<Ino>()> known;  // all inodes, for the coarse case
    std::function<std::vector<std::string>()> root_names;
  };

  Notifier(KernelNotify& kernel, Source source);
  ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  void attr(Ino ino) EXCLUDES(mu_);
  void data(Ino ino) EXCLUDES(mu_);  // of a directory: its cached listing
  void entry(Ino parent, std::string name) EXCLUDES(mu_);
  void deleted(Ino parent, Ino child, std::string name) EXCLUDES(mu_);
  void idle(Ino ino) EXCLUDES(mu_);  // it has no parked request any more
  void everything() EXCLUDES(mu_);
  // True when all that was added has been sent (tests).
  bool wait_idle(std::chrono::steady_clock::time_point deadline) EXCLUDES(mu_);
  void stop();  // a thread may be in the kernel: returns when it came back, so end the connection first

 private:
  struct Item {
    Ino ino = 0;  // of the inode, or of the parent when `name` is set
    std::string name;
    Ino child = 0;
    bool data = false;
    bool deleted = false;
  };
  using Key = std::pair<Ino, std::string>;

  void add(Item item) EXCLUDES(mu_);
  void enqueue_locked(Item item) REQUIRES(mu_);
  void run(const std::stop_token& stop) noexcept EXCLUDES(mu_);
  bool step() EXCLUDES(mu_);
  void send(const Item& item);
  void send_everything();

  KernelNotify& kernel_;
  const Source source_;
  base::Mutex mu_;
  base::CondVar wake_, quiet_;
  std::map<Key, Item> items_ GUARDED_BY(mu_);
  std::deque<Key> order_ GUARDED_BY(mu_);
  std::unordered_map<Ino, std::vector<Item>> aside_ GUARDED_BY(mu_);  // by the busy inode
  std::size_t aside_count_ GUARDED_BY(mu_) = 0;
  std::size_t sending_ GUARDED_BY(mu_) = 0;
  bool everything_ GUARDED_BY(mu_) = false;
  bool stopped_ GUARDED_BY(mu_) = false;
  std::vector<std::jthread> threads_;  // last: they use the others
};

}  // namespace nearbox::fs
