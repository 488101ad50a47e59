// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <list>
#include <map>
#include <unordered_map>
#include <utility>

#include "client/base/mutex.h"
#include "fs/core/block_cache.h"

// What BlockCache is made of; internal to fs/core.
namespace nearbox::fs::cache {

using Clock = std::chrono::steady_clock;

// What tells one content of a file from another. Without the agent's change counter (version 0) the change
// time has to do: programs set the modification time back, but not that.
struct Stamp {
  std::uint64_t size = 0, version = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;  // 0 beside a version
  explicit Stamp(const wire::Attr& attr)
      : size(attr.size),
        version(attr.version),
        mtime_ns(attr.mtime_ns),
        ctime_ns(attr.version == 0 ? attr.ctime_ns : 0) {}
  bool operator==(const Stamp&) const = default;
};

struct IdHash {
  std::size_t operator()(const wire::NodeId& id) const noexcept {
    return static_cast<std::size_t>(id.ino * 0x9e3779b97f4a7c15ULL ^ id.dev);
  }
};

// Files of one number, one after the other, have nothing in common here.
struct IdSame {
  bool operator()(const wire::NodeId& a, const wire::NodeId& b) const noexcept {
    return a == b && a.birth == b.birth;
  }
};

struct File;
using FilePtr = std::shared_ptr<File>;
using BlockKey = std::pair<wire::NodeId, std::uint64_t>;

// One read call: bytes [position, end) are still to come.
struct Fetch {
  FilePtr file;
  std::uint64_t generation = 0;
  std::optional<Stamp> stamp;  // of that generation
  std::uint64_t begin = 0, end = 0, position = 0;
  wire::Bytes building;  // of the block that holds `position`
  wire::PathCall at;
  int retries = 0;
  bool prefetch = false;   // a part of a Batch
  bool impatient = false;  // somebody waits for it, and a timer runs
  bool replaced = false;   // those who waited for it have calls of their own
};
using FetchPtr = std::shared_ptr<Fetch>;

// One call that fetches small files before they are asked for: a Fetch of each, never started by itself.
struct Batch {
  std::vector<FetchPtr> fetches;  // null: done with
  std::vector<wire::ReadManyItem> items;
  std::uint32_t root = 0;
  std::uint64_t bytes = 0;
  wire::Bytes partial;  // of a record that has not wholly come
  bool broken = false;
  std::function<void()> ended;
};
using BatchPtr = std::shared_ptr<Batch>;

// One read that lacks blocks.
struct Waiter {
  std::uint64_t generation = 0;
  std::uint64_t offset = 0;
  std::size_t length = 0;
  std::uint64_t first = 0;  // number of the first block
  std::vector<BlockCache::Block> blocks;
  std::size_t missing = 0;
  std::uint64_t fetched = 0;  // bytes of blocks that it is the first to read
  Clock::time_point deadline;
  BlockCache::Done done;
};

struct Cached {
  BlockCache::Block block;
  bool read = false;  // by somebody
  std::list<BlockKey>::iterator lru;
};

struct File {
  File(sync::NodeIndex n, const wire::Attr& attr) : node(n), id(wire::identity(attr)), stamp(attr) {}
  sync::NodeIndex node;
  wire::NodeId id;
  Stamp stamp;
  std::uint64_t generation = 1;  // of the content; fetches of an older one feed only their own waiters
  std::unordered_map<std::uint64_t, Cached> blocks;
  std::map<std::uint64_t, FetchPtr> pending;  // block number → fetch of this generation that brings it
  std::list<Waiter> waiters;
  std::deque<FetchPtr> queue;  // not started
  std::size_t running = 0;
  bool in_ring = false;
  std::uint64_t next = 0;    // where a sequential reader goes on
  std::uint64_t ahead = 0;   // end of what read-ahead asked for
  std::uint64_t window = 0;  // of read-ahead
};

}  // namespace nearbox::fs::cache

namespace nearbox::fs {

// The cache behind its interface. Guarded by mu_, a leaf; hooks, sinks and readers run without it.
class BlockCache::Impl : public std::enable_shared_from_this<BlockCache::Impl> {
 public:
  Impl(api::AgentLink& link, BlockCacheHooks hooks, const BlockCacheOptions& options)
      : link_(link), hooks_(std::move(hooks)), options_(options) {}

  void read(sync::NodeIndex node, const wire::Attr& attr, std::uint64_t offset, std::size_t length,
            Done done);
  void wrote(const wire::Attr& before, const wire::Attr& after, std::uint64_t offset, std::uint64_t length);
  void forget();
  bool has(const wire::Attr& attr, std::uint64_t offset, std::size_t length) const;
  BlockCacheStats stats() const;
  void close();

  // From the sinks.
  void take(const cache::FetchPtr& fetch, wire::ByteView bytes);
  void ended(const cache::FetchPtr& fetch, int error, wire::ByteView payload);
  wire::Bytes request(const cache::FetchPtr& fetch) const;

  std::uint64_t prefetch(const std::vector<Wanted>& files, std::function<void()> ended);
  void take(const cache::BatchPtr& batch, wire::ByteView bytes);
  void ended(const cache::BatchPtr& batch, int error);

 private:
  struct Step {  // what is to be done once the lock is gone
    std::vector<std::pair<Done, Data>> done;
    std::vector<cache::FetchPtr> start;
    std::vector<cache::FetchPtr> patience;  // prefetches that somebody waits for now
  };

  std::uint64_t block_of(std::uint64_t offset) const { return offset / options_.block_bytes; }
  void renew_locked(cache::File& file, const cache::Stamp& stamp) REQUIRES(mu_);
  bool collect_locked(cache::File& file, cache::Waiter& waiter) REQUIRES(mu_);
  void plan_locked(const cache::FilePtr& file, std::uint64_t begin, std::uint64_t end, bool front)
      REQUIRES(mu_);
  void plan_waiter_locked(const cache::FilePtr& file, std::uint64_t offset, std::size_t length) REQUIRES(mu_);
  void read_ahead_locked(const cache::FilePtr& file, std::uint64_t offset, std::size_t length) REQUIRES(mu_);
  void pump_locked(Step& step) REQUIRES(mu_);
  void ring_locked(const cache::FilePtr& file) REQUIRES(mu_);
  cache::FetchPtr begin_prefetch_locked(const Wanted& wanted) REQUIRES(mu_);
  void take_record_locked(cache::Batch& batch, wire::ReadManyRecord&& record, Step& step) REQUIRES(mu_);
  void drop_locked(const cache::FetchPtr& fetch, int error, Step& step) REQUIRES(mu_);
  void replace_locked(const cache::FetchPtr& fetch) REQUIRES(mu_);
  void wait_with_patience_locked(const cache::FilePtr& file, Step& step) REQUIRES(mu_);
  void be_patient(const cache::FetchPtr& fetch);
  void lose_patience(const cache::FetchPtr& fetch);
  void commit_locked(cache::Fetch& fetch, Step& step) REQUIRES(mu_);
  void feed_locked(cache::File& file, std::uint64_t generation, std::uint64_t number, const Block& block,
                   Step& step) REQUIRES(mu_);
  void store_locked(cache::File& file, std::uint64_t number, Block block) REQUIRES(mu_);
  void unpend_locked(const cache::FetchPtr& fetch) REQUIRES(mu_);
  void fail_locked(const cache::FetchPtr& fetch, int error, Step& step) REQUIRES(mu_);
  void finish_locked(const cache::FetchPtr& fetch, const wire::ReadReply& reply, Step& step) REQUIRES(mu_);
  void evict_locked() REQUIRES(mu_);
  void tidy_locked(const cache::FilePtr& file) REQUIRES(mu_);
  Data assemble(const cache::Waiter& waiter) const;
  void run(Step& step);
  // Where its file was seen last, which every reader says anew; nothing once the cache is closed.
  std::optional<sync::NodeIndex> node_of(const cache::Fetch& fetch) const;
  void launch(const cache::FetchPtr& fetch);
  bool worth_retrying_locked(const cache::Fetch& fetch, int error) const REQUIRES(mu_);
  void retry(const cache::FetchPtr& fetch, int error);
  void look_again(const cache::FetchPtr& fetch, int error);
  bool unchanged(const cache::Fetch& fetch) const;

  api::AgentLink& link_;
  const BlockCacheHooks hooks_;
  const BlockCacheOptions options_;

  mutable base::Mutex mu_;
  std::unordered_map<wire::NodeId, cache::FilePtr, cache::IdHash, cache::IdSame> files_ GUARDED_BY(mu_);
  std::list<cache::BlockKey> lru_ GUARDED_BY(mu_);   // oldest first
  std::deque<cache::FilePtr> ring_ GUARDED_BY(mu_);  // files with fetches to start, in turn
  std::uint64_t bytes_ GUARDED_BY(mu_) = 0;
  std::size_t running_ GUARDED_BY(mu_) = 0;
  BlockCacheStats stats_ GUARDED_BY(mu_);
  bool closed_ GUARDED_BY(mu_) = false;
};

}  // namespace nearbox::fs
