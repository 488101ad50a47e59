// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <set>

#include "client/base/mutex.h"
#include "client/wire/messages.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxBlind = 32;
inline constexpr std::size_t kVersionBuckets = 64 * 1024;
inline constexpr std::size_t kVersionSlots = 6;  // nodes of one bucket: 393,216 in all, 10 MB when full

// Attr.version: how often a file's content changed, by one counter for all nodes, so that a version
// is never used twice. Times and sizes take no part in it: kernels before 6.13 step them by a clock
// tick, and stores through a shared map may leave them alone.
//
// Owns:    a table of the nodes that changed lately. A node that must leave it raises the floor of its
//          bucket, which is the version of every node that is not in the table: the bucket's others
//          may then look changed once more, but none that changed looks unchanged.
// Threads: any.
// Order:   a version is bumped after the change it stands for. Whoever reads bytes or attributes takes
//          now() before, and says the older one of that and the node's: then what it read is at least
//          as new as the version beside it.
class Versions {
 public:
  Versions() = default;
  ~Versions();
  Versions(const Versions&) = delete;
  Versions& operator=(const Versions&) = delete;

  // Those of this process: every Attr it sends has its version from here.
  static Versions& process();

  // Counts from now on; every node counts as changed since whatever was said before.
  void enable();
  void disable() { enabled_.store(false); }
  // Devices that change without a word: their nodes have no versions. Those beyond kMaxBlind keep theirs.
  void set_blind(const std::set<std::uint64_t>& devices);
  bool enabled() const { return enabled_.load(std::memory_order_acquire); }

  std::uint64_t now() const { return counter_.load(std::memory_order_acquire); }
  // 0 while not enabled, and to whoever works below a root that is not watched (Uncounted); at most `as_of`.
  std::uint64_t of(wire::NodeId node, std::uint64_t as_of) const;
  std::uint64_t of(wire::NodeId node) const { return of(node, now()); }
  // A number that no state had before: for what must not be taken for what it was.
  std::uint64_t unique() { return counter_.fetch_add(1) + 1; }
  // The node's content is another one now. Returns its version: `number`, or a new one.
  std::uint64_t bump(wire::NodeId node) { return bump(node, unique()); }
  // By a number that unique() gave before the node was looked at: what the look shows is as new as that.
  std::uint64_t bump(wire::NodeId node, std::uint64_t number);
  // Anything may have changed.
  void bump_all();

 private:
  struct Slot {
    wire::NodeId node;
    std::uint64_t version;  // 0: free
  };
  struct Bucket {
    std::uint64_t floor;
    std::array<Slot, kVersionSlots> slots;
  };
  static constexpr std::size_t kLocks = 64;
  bool blind(std::uint64_t dev) const;
  void raise_floor(std::uint64_t version);
  Bucket& bucket_of(Bucket* table, wire::NodeId node, std::size_t& lock) const;

  std::atomic<bool> enabled_{false};
  std::array<std::atomic<std::uint64_t>, kMaxBlind> blind_{};  // device + 1; 0 ends them
  std::atomic<std::uint64_t> counter_{1};
  std::atomic<std::uint64_t> floor_{1};
  std::atomic<Bucket*> table_{nullptr};            // made by the first enable(), zero pages until used
  mutable std::array<base::Mutex, kLocks> locks_;  // rank: leaf; one for every kLocks-th bucket
};

// While one exists, the thread works below a root that is not watched, though others may be: nothing it looks
// at has a version. A Versions::bump() counts all the same.
class Uncounted {
 public:
  explicit Uncounted(bool here) : before_(here_) { here_ = here; }
  ~Uncounted() { here_ = before_; }
  Uncounted(const Uncounted&) = delete;
  Uncounted& operator=(const Uncounted&) = delete;
  static bool here() { return here_; }

 private:
  const bool before_;
  static thread_local bool here_;
};

}  // namespace nearbox::agent
