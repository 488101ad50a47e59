// SPDX-License-Identifier: Apache-2.0
#include "fs/core/block_cache.h"

#include <algorithm>
#include <cerrno>
#include <deque>
#include <list>
#include <map>
#include <unordered_map>
#include <utility>

#include "client/base/mutex.h"

namespace nearbox::fs {
namespace {

using base::MutexLock;
using Clock = std::chrono::steady_clock;

// What tells one content of a file from another.
struct Stamp {
  std::uint64_t size = 0, version = 0;
  std::int64_t mtime_ns = 0;
  explicit Stamp(const wire::Attr& attr) : size(attr.size), version(attr.version), mtime_ns(attr.mtime_ns) {}
  bool operator==(const Stamp&) const = default;
};

struct IdHash {
  std::size_t operator()(const wire::NodeId& id) const noexcept {
    return static_cast<std::size_t>(id.ino * 0x9e3779b97f4a7c15ULL ^ id.dev);
  }
};

struct File;
using FilePtr = std::shared_ptr<File>;
using BlockKey = std::pair<wire::NodeId, std::uint64_t>;

// One read call: bytes [position, end) are still to come.
struct Fetch {
  FilePtr file;
  std::uint64_t generation = 0;
  std::uint64_t begin = 0, end = 0, position = 0;
  wire::Bytes building;  // of the block that holds `position`
  wire::PathCall at;
  bool retried = false;
};
using FetchPtr = std::shared_ptr<Fetch>;

// One read that lacks blocks.
struct Waiter {
  std::uint64_t generation = 0;
  std::uint64_t offset = 0;
  std::size_t length = 0;
  std::uint64_t first = 0;  // number of the first block
  std::vector<BlockCache::Block> blocks;
  std::size_t missing = 0;
  Clock::time_point deadline;
  BlockCache::Done done;
};

struct Cached {
  BlockCache::Block block;
  std::list<BlockKey>::iterator lru;
};

struct File {
  File(sync::NodeIndex n, const wire::Attr& attr) : node(n), id{attr.dev, attr.ino}, stamp(attr) {}
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

constexpr std::uint64_t kFirstWindow = 1024 * 1024;
constexpr std::uint64_t kSequentialSlack =
    512 * 1024;  // several kernel read-ahead requests overtake each other

}  // namespace

class BlockCache::Impl : public std::enable_shared_from_this<BlockCache::Impl> {
 public:
  Impl(api::AgentLink& link, BlockCacheHooks hooks, const BlockCacheOptions& options)
      : link_(link), hooks_(std::move(hooks)), options_(options) {}

  void read(sync::NodeIndex node, const wire::Attr& attr, std::uint64_t offset, std::size_t length,
            Done done);
  void wrote(const wire::Attr& before, const wire::Attr& after, std::uint64_t offset, std::uint64_t length);
  BlockCacheStats stats() const;
  void close();

  // From the sinks.
  void take(const FetchPtr& fetch, wire::ByteView bytes);
  void ended(const FetchPtr& fetch, int error, wire::ByteView payload);
  wire::Bytes request(const FetchPtr& fetch) const;

 private:
  struct Step {  // what is to be done once the lock is gone
    std::vector<std::pair<Done, Data>> done;
    std::vector<FetchPtr> start;
  };

  std::uint64_t block_of(std::uint64_t offset) const { return offset / options_.block_bytes; }
  void renew_locked(File& file, const Stamp& stamp) REQUIRES(mu_);
  bool collect_locked(File& file, Waiter& waiter) REQUIRES(mu_);
  void plan_locked(const FilePtr& file, std::uint64_t begin, std::uint64_t end, bool front) REQUIRES(mu_);
  void plan_waiter_locked(const FilePtr& file, std::uint64_t offset, std::size_t length) REQUIRES(mu_);
  void read_ahead_locked(const FilePtr& file, std::uint64_t offset, std::size_t length) REQUIRES(mu_);
  void pump_locked(Step& step) REQUIRES(mu_);
  void ring_locked(const FilePtr& file) REQUIRES(mu_);
  void commit_locked(Fetch& fetch, Step& step) REQUIRES(mu_);
  void feed_locked(File& file, std::uint64_t generation, std::uint64_t number, const Block& block, Step& step)
      REQUIRES(mu_);
  void store_locked(File& file, std::uint64_t number, Block block) REQUIRES(mu_);
  void unpend_locked(const FetchPtr& fetch) REQUIRES(mu_);
  void fail_locked(const FetchPtr& fetch, int error, Step& step) REQUIRES(mu_);
  void finish_locked(const FetchPtr& fetch, const wire::ReadReply& reply, Step& step) REQUIRES(mu_);
  void evict_locked() REQUIRES(mu_);
  void tidy_locked(const FilePtr& file) REQUIRES(mu_);
  Data assemble(const Waiter& waiter) const;
  void run(Step& step);
  void launch(const FetchPtr& fetch);
  void retry(const FetchPtr& fetch);

  api::AgentLink& link_;
  const BlockCacheHooks hooks_;
  const BlockCacheOptions options_;

  mutable base::Mutex mu_;
  std::unordered_map<wire::NodeId, FilePtr, IdHash> files_ GUARDED_BY(mu_);
  std::list<BlockKey> lru_ GUARDED_BY(mu_);   // oldest first
  std::deque<FilePtr> ring_ GUARDED_BY(mu_);  // files with fetches to start, in turn
  std::uint64_t bytes_ GUARDED_BY(mu_) = 0;
  std::size_t running_ GUARDED_BY(mu_) = 0;
  BlockCacheStats stats_ GUARDED_BY(mu_);
  bool closed_ GUARDED_BY(mu_) = false;
};

namespace {

class ReadSink final : public api::CallSink {
 public:
  ReadSink(std::shared_ptr<BlockCache::Impl> cache, FetchPtr fetch)
      : cache_(std::move(cache)), fetch_(std::move(fetch)) {}
  void on_chunk(wire::ByteView bytes) noexcept override { cache_->take(fetch_, bytes); }
  void on_end(int error, wire::ByteView payload) noexcept override { cache_->ended(fetch_, error, payload); }
  std::optional<wire::Bytes> on_lost() noexcept override { return cache_->request(fetch_); }

 private:
  std::shared_ptr<BlockCache::Impl> cache_;
  FetchPtr fetch_;
};

}  // namespace

// ---- reading

void BlockCache::Impl::read(sync::NodeIndex node, const wire::Attr& attr, std::uint64_t offset,
                            std::size_t length, Done done) {
  Step step;
  if (offset >= attr.size || length == 0) return done(Data{});
  length = static_cast<std::size_t>(std::min<std::uint64_t>(length, attr.size - offset));
  {
    MutexLock lock(mu_);
    if (closed_) {
      Data data;
      data.error = ESHUTDOWN;
      step.done.emplace_back(std::move(done), std::move(data));
    } else {
      auto& file = files_[wire::NodeId{attr.dev, attr.ino}];
      if (!file) file = std::make_shared<File>(node, attr);
      const FilePtr held = file;
      held->node = node;
      if (!(held->stamp == Stamp(attr))) renew_locked(*held, Stamp(attr));
      Waiter waiter;
      waiter.generation = held->generation;
      waiter.offset = offset;
      waiter.length = length;
      waiter.first = block_of(offset);
      waiter.blocks.resize(block_of(offset + length - 1) - waiter.first + 1);
      waiter.missing = waiter.blocks.size();
      waiter.deadline = Clock::now() + options_.deadline;
      waiter.done = std::move(done);
      if (collect_locked(*held, waiter)) {
        ++stats_.hits;
        auto data = assemble(waiter);
        step.done.emplace_back(std::move(waiter.done), std::move(data));
      } else {
        ++stats_.misses;
        held->waiters.push_back(std::move(waiter));
        plan_waiter_locked(held, offset, length);
      }
      read_ahead_locked(held, offset, length);
      pump_locked(step);
    }
  }
  run(step);
}

// Takes what is cached; true when nothing lacks.
bool BlockCache::Impl::collect_locked(File& file, Waiter& waiter) {
  for (std::size_t i = 0; i < waiter.blocks.size(); ++i) {
    if (waiter.blocks[i]) continue;
    const auto it = file.blocks.find(waiter.first + i);
    if (it == file.blocks.end()) continue;
    lru_.splice(lru_.end(), lru_, it->second.lru);
    waiter.blocks[i] = it->second.block;
    --waiter.missing;
  }
  return waiter.missing == 0;
}

BlockCache::Data BlockCache::Impl::assemble(const Waiter& waiter) const {
  Data data;
  std::uint64_t at = waiter.offset;
  const std::uint64_t end = waiter.offset + waiter.length;
  for (const auto& block : waiter.blocks) {
    const std::size_t within = static_cast<std::size_t>(at % options_.block_bytes);
    if (!block || within >= block->size()) break;
    const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(block->size() - within, end - at));
    data.pieces.push_back({block, within, take});
    data.size += take;
    at += take;
    if (at % options_.block_bytes != 0) break;  // the end was asked for, or the file ends here
  }
  return data;
}

// Other content than before: what is cached goes, fetches under way feed their own waiters only.
void BlockCache::Impl::renew_locked(File& file, const Stamp& stamp) {
  for (auto& [number, cached] : file.blocks) {
    bytes_ -= cached.block->size();
    lru_.erase(cached.lru);
  }
  file.blocks.clear();
  file.pending.clear();
  file.stamp = stamp;
  ++file.generation;
  file.ahead = 0;
}

// ---- planning fetches

void BlockCache::Impl::plan_waiter_locked(const FilePtr& file, std::uint64_t offset, std::size_t length) {
  if (file->stamp.size <= options_.whole_file_bytes) return plan_locked(file, 0, file->stamp.size, true);
  plan_locked(file, offset, offset + length, true);
}

// Queues fetches for the blocks of [begin, end) that are neither here nor on the way.
void BlockCache::Impl::plan_locked(const FilePtr& file, std::uint64_t begin, std::uint64_t end, bool front) {
  end = std::min(end, file->stamp.size);
  if (begin >= end) return;
  std::vector<FetchPtr> made;
  FetchPtr fetch;
  for (std::uint64_t number = block_of(begin); number <= block_of(end - 1); ++number) {
    if (file->blocks.contains(number) || file->pending.contains(number)) {
      fetch.reset();
      continue;
    }
    const std::uint64_t at = number * options_.block_bytes;
    if (!fetch || at - fetch->begin >= options_.fetch_bytes) {
      fetch = std::make_shared<Fetch>();
      fetch->file = file;
      fetch->generation = file->generation;
      fetch->begin = fetch->position = at;
      made.push_back(fetch);
    }
    fetch->end = std::min(at + options_.block_bytes, file->stamp.size);
    file->pending[number] = fetch;
  }
  file->queue.insert(front ? file->queue.begin() : file->queue.end(), made.begin(), made.end());
  ring_locked(file);
}

void BlockCache::Impl::read_ahead_locked(const FilePtr& file, std::uint64_t offset, std::size_t length) {
  if (file->stamp.size <= options_.whole_file_bytes) return;
  const std::uint64_t end = offset + length;
  const bool sequential = offset <= file->next + kSequentialSlack && end + kSequentialSlack >= file->next &&
                          (offset == 0 || file->next != 0);
  if (!sequential) {
    file->next = end;
    file->window = 0;
    file->ahead = 0;
    return;
  }
  file->next = std::max(file->next, end);
  if (offset == 0 && file->window == 0) file->next = end;
  const std::uint64_t share = options_.max_bytes / 2 / std::max<std::size_t>(files_.size(), 1);
  const std::uint64_t limit =
      std::min(options_.max_ahead_bytes, std::max(share, std::uint64_t{options_.block_bytes}));
  if (file->window == 0) file->window = kFirstWindow;
  file->ahead = std::max(file->ahead, file->next);
  if (file->ahead - file->next > file->window / 2 || running_ >= options_.max_ahead_fetches) return;
  const std::uint64_t to = file->next + std::min(file->window, limit);
  if (to > file->ahead) {
    plan_locked(file, file->ahead, to, false);
    file->ahead = to;
  }
  file->window = std::min(file->window * 2, options_.max_ahead_bytes);
}

void BlockCache::Impl::ring_locked(const FilePtr& file) {
  if (file->in_ring || file->queue.empty() || file->running >= options_.max_file_fetches) return;
  file->in_ring = true;
  ring_.push_back(file);
}

void BlockCache::Impl::pump_locked(Step& step) {
  while (running_ < options_.max_fetches && !ring_.empty()) {
    const FilePtr file = std::move(ring_.front());
    ring_.pop_front();
    file->in_ring = false;
    if (file->queue.empty() || file->running >= options_.max_file_fetches) continue;
    step.start.push_back(std::move(file->queue.front()));
    file->queue.pop_front();
    ++file->running;
    ++running_;
    ring_locked(file);
  }
}

void BlockCache::Impl::run(Step& step) {
  for (const auto& fetch : step.start) launch(fetch);
  for (auto& [done, data] : step.done) done(std::move(data));
}

// ---- one fetch

wire::Bytes BlockCache::Impl::request(const FetchPtr& fetch) const {
  MutexLock lock(mu_);
  wire::Read message;
  message.at = fetch->at;
  message.offset = fetch->position;
  message.length = fetch->end - fetch->position;
  return wire::encode(message);
}

void BlockCache::Impl::launch(const FetchPtr& fetch) {
  {
    MutexLock lock(mu_);
    if (closed_) return;  // its readers were answered; what the hooks use may be gone
  }
  const auto at = hooks_.locate(fetch->file->node, fetch->file->id);
  if (!at) return ended(fetch, ESTALE, {});
  {
    MutexLock lock(mu_);
    fetch->at = *at;
  }
  api::CallOptions options;
  options.deadline = Clock::now() + options_.deadline;
  options.lane = api::Lane::kBulk;
  link_.call(wire::Method::kRead, request(fetch), std::make_unique<ReadSink>(shared_from_this(), fetch),
             options);
}

void BlockCache::Impl::take(const FetchPtr& fetch, wire::ByteView bytes) {
  Step step;
  {
    MutexLock lock(mu_);
    stats_.fetched += bytes.size();
    while (!bytes.empty() && fetch->position < fetch->end) {
      const std::uint64_t block_end =
          std::min((block_of(fetch->position) + 1) * options_.block_bytes, fetch->end);
      const auto n =
          static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), block_end - fetch->position));
      fetch->building.insert(fetch->building.end(), bytes.begin(),
                             bytes.begin() + static_cast<std::ptrdiff_t>(n));
      fetch->position += n;
      bytes = bytes.subspan(n);
      if (fetch->position == block_end) commit_locked(*fetch, step);
    }
    evict_locked();
  }
  run(step);
}

// The block before `position` is whole.
void BlockCache::Impl::commit_locked(Fetch& fetch, Step& step) {
  File& file = *fetch.file;
  const std::uint64_t number = block_of(fetch.position - 1);
  auto block = std::make_shared<const wire::Bytes>(std::move(fetch.building));
  fetch.building = {};
  if (fetch.generation == file.generation && !closed_) {
    file.pending.erase(number);
    store_locked(file, number, block);
  }
  feed_locked(file, fetch.generation, number, block, step);
}

void BlockCache::Impl::store_locked(File& file, std::uint64_t number, Block block) {
  if (file.blocks.contains(number)) return;
  bytes_ += block->size();
  const auto lru = lru_.insert(lru_.end(), {file.id, number});
  file.blocks.emplace(number, Cached{std::move(block), lru});
}

void BlockCache::Impl::feed_locked(File& file, std::uint64_t generation, std::uint64_t number,
                                   const Block& block, Step& step) {
  for (auto it = file.waiters.begin(); it != file.waiters.end();) {
    Waiter& waiter = *it;
    const bool wants = waiter.generation == generation && number >= waiter.first &&
                       number - waiter.first < waiter.blocks.size() && !waiter.blocks[number - waiter.first];
    if (wants) {
      waiter.blocks[number - waiter.first] = block;
      --waiter.missing;
    }
    if (wants && waiter.missing == 0) {
      auto data = assemble(waiter);
      step.done.emplace_back(std::move(waiter.done), std::move(data));
      it = file.waiters.erase(it);
    } else {
      ++it;
    }
  }
}

void BlockCache::Impl::unpend_locked(const FetchPtr& fetch) {
  std::erase_if(fetch->file->pending, [&](const auto& entry) { return entry.second == fetch; });
}

void BlockCache::Impl::ended(const FetchPtr& fetch, int error, wire::ByteView payload) {
  std::optional<wire::ReadReply> reply;
  if (error == 0) {
    reply = wire::decode<wire::ReadReply>(payload);
    if (!reply) error = EPROTO;
  }
  Step step;
  bool changed = false;
  {
    MutexLock lock(mu_);
    if ((error == ESTALE || error == ENOENT) && !fetch->retried && !closed_) {
      fetch->retried = true;
    } else {
      if (error == ENOENT) error = ESTALE;
      --fetch->file->running;
      --running_;
      if (reply) {
        changed = !closed_ && !(Stamp(reply->attr) == fetch->file->stamp) &&
                  fetch->generation == fetch->file->generation;
        finish_locked(fetch, *reply, step);
      } else {
        fail_locked(fetch, error, step);
      }
      ring_locked(fetch->file);
      pump_locked(step);
      evict_locked();
      tidy_locked(fetch->file);
      error = 0;
    }
  }
  if (error != 0) return retry(fetch);
  if (changed) hooks_.changed(fetch->file->node, reply->attr);
  run(step);
}

// The file may lie elsewhere, or be replaced: looks once, then goes on from where the bytes ended.
void BlockCache::Impl::retry(const FetchPtr& fetch) {
  hooks_.refresh(fetch->file->node, [self = shared_from_this(), fetch] { self->launch(fetch); });
}

void BlockCache::Impl::finish_locked(const FetchPtr& fetch, const wire::ReadReply& reply, Step& step) {
  File& file = *fetch->file;
  unpend_locked(fetch);
  if (fetch->position < fetch->end && reply.attr.size > fetch->position && Stamp(reply.attr) == file.stamp) {
    return fail_locked(fetch, EIO, step);  // ended early without cause
  }
  if (fetch->position < fetch->end) {
    // The file shrank: what came of the last block, then nothing.
    const std::uint64_t last = block_of(fetch->end - 1);
    auto tail = std::make_shared<const wire::Bytes>(std::move(fetch->building));
    for (std::uint64_t number = block_of(fetch->position); number <= last; ++number) {
      feed_locked(file, fetch->generation, number, tail, step);
      tail = std::make_shared<const wire::Bytes>();
    }
  }
  const wire::NodeId id{reply.attr.dev, reply.attr.ino};
  if (fetch->generation == file.generation && id == file.id && !(Stamp(reply.attr) == file.stamp)) {
    // Blocks of two contents may be mixed here: readers got them, as on a local disk, but none stays.
    renew_locked(file, Stamp(reply.attr));
  }
}

void BlockCache::Impl::fail_locked(const FetchPtr& fetch, int error, Step& step) {
  const FilePtr& file = fetch->file;
  unpend_locked(fetch);
  const std::uint64_t first = block_of(fetch->position);
  const std::uint64_t last = block_of(fetch->end - 1);
  const auto now = Clock::now();
  std::vector<std::pair<std::uint64_t, std::size_t>> again;
  for (auto it = file->waiters.begin(); it != file->waiters.end();) {
    Waiter& waiter = *it;
    const bool hit = waiter.generation == fetch->generation && waiter.first <= last &&
                     waiter.first + waiter.blocks.size() > first;
    if (!hit) {
      ++it;
    } else if (error == ETIMEDOUT && waiter.deadline > now + options_.deadline / 100 && !closed_ &&
               waiter.generation == file->generation) {
      again.emplace_back(waiter.offset, waiter.length);  // it came later than the fetch
      ++it;
    } else {
      Data data;
      data.error = error;
      step.done.emplace_back(std::move(waiter.done), std::move(data));
      it = file->waiters.erase(it);
    }
  }
  for (const auto& [offset, length] : again) plan_waiter_locked(file, offset, length);
}

// ---- memory

void BlockCache::Impl::evict_locked() {
  while (bytes_ > options_.max_bytes && !lru_.empty()) {
    const auto [id, number] = lru_.front();
    lru_.pop_front();
    const auto it = files_.find(id);
    const FilePtr file = it->second;
    const auto block = file->blocks.find(number);
    bytes_ -= block->second.block->size();
    file->blocks.erase(block);
    if (file->ahead > number * options_.block_bytes) file->ahead = 0;
    tidy_locked(file);
  }
}

// Forgets a file of which nothing is left.
void BlockCache::Impl::tidy_locked(const FilePtr& file) {
  if (!file->blocks.empty() || !file->waiters.empty() || file->running != 0 || !file->queue.empty()) return;
  const auto it = files_.find(file->id);
  if (it != files_.end() && it->second == file) files_.erase(it);
}

void BlockCache::Impl::wrote(const wire::Attr& before, const wire::Attr& after, std::uint64_t offset,
                             std::uint64_t length) {
  MutexLock lock(mu_);
  const auto it = files_.find(wire::NodeId{before.dev, before.ino});
  if (it == files_.end()) return;
  const FilePtr file = it->second;
  const bool alone =
      file->stamp == Stamp(before) && before.version != 0 && after.version == before.version + 1;
  if (!alone || file->running != 0 || !file->queue.empty()) {
    renew_locked(*file, Stamp(after));
    return tidy_locked(file);
  }
  const std::uint64_t first = block_of(offset);
  const std::uint64_t last = block_of(offset + length);
  const std::uint64_t edge = block_of(std::min(before.size, after.size));  // its block had another length
  const auto touched = [&](std::uint64_t number) {
    return (number >= first && number <= last) || (before.size != after.size && number >= edge);
  };
  for (auto at = file->blocks.begin(); at != file->blocks.end();) {
    if (!touched(at->first)) {
      ++at;
      continue;
    }
    bytes_ -= at->second.block->size();
    lru_.erase(at->second.lru);
    at = file->blocks.erase(at);
  }
  file->stamp = Stamp(after);
  tidy_locked(file);
}

BlockCacheStats BlockCache::Impl::stats() const {
  MutexLock lock(mu_);
  BlockCacheStats stats = stats_;
  stats.bytes = bytes_;
  stats.fetches = running_;
  for (const auto& [id, file] : files_) stats.waiters += file->waiters.size();
  return stats;
}

void BlockCache::Impl::close() {
  Step step;
  {
    MutexLock lock(mu_);
    closed_ = true;
    for (auto& [id, file] : files_) {
      file->queue.clear();
      for (auto& waiter : file->waiters) {
        Data data;
        data.error = ESHUTDOWN;
        step.done.emplace_back(std::move(waiter.done), std::move(data));
      }
      file->waiters.clear();
      file->pending.clear();
    }
    ring_.clear();
  }
  run(step);
}

BlockCache::BlockCache(api::AgentLink& link, BlockCacheHooks hooks, BlockCacheOptions options)
    : impl_(std::make_shared<Impl>(link, std::move(hooks), options)) {}
BlockCache::~BlockCache() { impl_->close(); }
void BlockCache::read(sync::NodeIndex node, const wire::Attr& attr, std::uint64_t offset, std::size_t length,
                      Done done) {
  impl_->read(node, attr, offset, length, std::move(done));
}
void BlockCache::wrote(const wire::Attr& before, const wire::Attr& after, std::uint64_t offset,
                       std::uint64_t length) {
  impl_->wrote(before, after, offset, length);
}
BlockCacheStats BlockCache::stats() const { return impl_->stats(); }
void BlockCache::close() { impl_->close(); }

}  // namespace nearbox::fs
