// SPDX-License-Identifier: Apache-2.0
// The block cache's read calls: started, fed piece by piece, ended, tried again.
#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "fs/core/block_cache_impl.h"

namespace nearbox::fs {

using base::MutexLock;
using cache::Cached;
using cache::Clock;
using cache::Fetch;
using cache::FetchPtr;
using cache::File;
using cache::FilePtr;
using cache::Stamp;
using cache::Waiter;

namespace {

// A file whose directories are being renamed may be missed more than once, and an agent that was restarted
// knows the root only after a while.
constexpr int kMaxRetries = 4;
constexpr std::array<std::chrono::milliseconds, kMaxRetries> kRetryDelay{
    std::chrono::milliseconds(0), std::chrono::milliseconds(20), std::chrono::milliseconds(100),
    std::chrono::milliseconds(500)};

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

wire::Bytes BlockCache::Impl::request(const FetchPtr& fetch) const {
  MutexLock lock(mu_);
  wire::Read message;
  message.at = fetch->at;
  message.offset = fetch->position;
  message.length = fetch->end - fetch->position;
  return wire::encode(message);
}

std::optional<sync::NodeIndex> BlockCache::Impl::node_of(const Fetch& fetch) const {
  MutexLock lock(mu_);
  if (closed_) return std::nullopt;
  return fetch.file->node;
}

void BlockCache::Impl::launch(const FetchPtr& fetch) {
  const auto node = node_of(*fetch);
  if (!node) return;
  const auto at = hooks_.locate(*node, fetch->file->id);
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
      if (fetch->building.empty()) fetch->building.reserve(block_end - fetch->position);
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
    const auto pending = file.pending.find(number);
    if (pending != file.pending.end() && pending->second.get() == &fetch) file.pending.erase(pending);
    store_locked(file, number, block);
  }
  feed_locked(file, fetch.generation, number, block, step);
}

void BlockCache::Impl::store_locked(File& file, std::uint64_t number, Block block) {
  if (file.blocks.contains(number)) return;
  bytes_ += block->size();
  const auto lru = lru_.insert(lru_.end(), {file.id, number});
  file.blocks.emplace(number, Cached{std::move(block), false, lru});
}

void BlockCache::Impl::feed_locked(File& file, std::uint64_t generation, std::uint64_t number,
                                   const Block& block, Step& step) {
  const auto cached = file.blocks.find(number);
  bool read = cached != file.blocks.end() && cached->second.read;
  for (auto it = file.waiters.begin(); it != file.waiters.end();) {
    Waiter& waiter = *it;
    const bool wants = waiter.generation == generation && number >= waiter.first &&
                       number - waiter.first < waiter.blocks.size() && !waiter.blocks[number - waiter.first];
    if (wants) {
      waiter.blocks[number - waiter.first] = block;
      if (!std::exchange(read, true)) waiter.fetched += block->size();
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
  if (cached != file.blocks.end() && generation == file.generation) cached->second.read = read;
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
    if (worth_retrying_locked(*fetch, error)) {
      ++fetch->retries;
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
  if (error != 0) return retry(fetch, error);
  if (const auto node = changed ? node_of(*fetch) : std::nullopt) hooks_.changed(*node, reply->attr);
  run(step);
}

bool BlockCache::Impl::worth_retrying_locked(const Fetch& fetch, int error) const {
  if (closed_ || fetch.retries >= kMaxRetries) return false;
  if (error == ESTALE || error == ENOENT) return true;
  if (error != ECONNRESET) return false;
  // The agent was restarted: for somebody who still waits.
  const auto now = Clock::now();
  const auto& waiters = fetch.file->waiters;
  return std::any_of(waiters.begin(), waiters.end(), [&](const Waiter& waiter) {
    return waiter.generation == fetch.generation && waiter.deadline > now;
  });
}

// The file may lie elsewhere, or be replaced: looks where it is, then goes on from where the bytes ended.
void BlockCache::Impl::retry(const FetchPtr& fetch, int error) {
  int retries = 0;
  {
    MutexLock lock(mu_);
    retries = fetch->retries;
  }
  const auto delay = kRetryDelay[static_cast<std::size_t>(std::clamp(retries, 1, kMaxRetries) - 1)];
  if (delay.count() == 0 || !hooks_.later) return look_again(fetch, error);
  hooks_.later(delay, [weak = weak_from_this(), fetch, error] {
    if (const auto self = weak.lock()) self->look_again(fetch, error);
  });
}

void BlockCache::Impl::look_again(const FetchPtr& fetch, int error) {
  const auto node = node_of(*fetch);
  if (!node) return;
  hooks_.refresh(*node, [self = shared_from_this(), fetch, error] {
    if (error != ECONNRESET || self->unchanged(*fetch)) return self->launch(fetch);
    {
      MutexLock lock(self->mu_);
      fetch->retries = kMaxRetries;
    }
    self->ended(fetch, error, {});  // the bytes so far are of another content
  });
}

// The tree still shows what the fetch began with.
bool BlockCache::Impl::unchanged(const Fetch& fetch) const {
  const auto node = node_of(fetch);
  if (!node || !hooks_.attr) return true;  // closed: launch() leaves it
  const auto attr = hooks_.attr(*node);
  return wire::same_node(wire::identity(attr), fetch.file->id) && fetch.stamp == Stamp(attr);
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
  const wire::NodeId id = wire::identity(reply.attr);
  if (fetch->generation == file.generation && wire::same_node(id, file.id) &&
      !(Stamp(reply.attr) == file.stamp)) {
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

}  // namespace nearbox::fs
