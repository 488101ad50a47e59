// SPDX-License-Identifier: Apache-2.0
// The block cache's prefetch: many small files in one call.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fs/core/block_cache_impl.h"

namespace nearbox::fs {

using base::MutexLock;
using cache::Batch;
using cache::BatchPtr;
using cache::Clock;
using cache::Fetch;
using cache::FetchPtr;
using cache::File;
using cache::FilePtr;
using cache::Stamp;

namespace {

constexpr std::size_t kMaxRecord = wire::kMaxWriteBytes + 256;  // with its attributes

class BatchSink final : public api::CallSink {
 public:
  BatchSink(std::shared_ptr<BlockCache::Impl> cache, BatchPtr batch)
      : cache_(std::move(cache)), batch_(std::move(batch)) {}
  void on_chunk(wire::ByteView bytes) noexcept override { cache_->take(batch_, bytes); }
  void on_end(int error, wire::ByteView) noexcept override { cache_->ended(batch_, error); }

 private:
  std::shared_ptr<BlockCache::Impl> cache_;
  BatchPtr batch_;
};

}  // namespace

// Nothing when the file is here, on the way, or no longer what the tree showed.
FetchPtr BlockCache::Impl::begin_prefetch_locked(const Wanted& wanted) {
  const auto& attr = wanted.attr;
  if (attr.size == 0 || attr.size > options_.whole_file_bytes) return nullptr;
  auto& file = files_[wire::NodeId{attr.dev, attr.ino}];
  if (!file) file = std::make_shared<File>(wanted.node, attr);
  const FilePtr held = file;
  if (!(held->stamp == Stamp(attr))) {
    if (held->running != 0 || !held->queue.empty() || !held->waiters.empty()) return nullptr;
    renew_locked(*held, Stamp(attr));
  }
  const auto last = block_of(attr.size - 1);
  for (std::uint64_t number = 0; number <= last; ++number) {
    if (held->blocks.contains(number) || held->pending.contains(number)) return nullptr;
  }
  held->node = wanted.node;
  auto fetch = std::make_shared<Fetch>();
  fetch->file = held;
  fetch->generation = held->generation;
  fetch->stamp = held->stamp;
  fetch->end = attr.size;
  fetch->prefetch = true;
  for (std::uint64_t number = 0; number <= last; ++number) held->pending[number] = fetch;
  ++held->running;
  return fetch;
}

std::uint64_t BlockCache::Impl::prefetch(const std::vector<Wanted>& files, std::function<void()> ended_fn) {
  auto batch = std::make_shared<Batch>();
  batch->ended = std::move(ended_fn);
  std::uint64_t spared = 0;
  Step step;
  for (const auto& wanted : files) {
    const wire::NodeId id{wanted.attr.dev, wanted.attr.ino};
    auto at = batch->items.size() < wire::kMaxReadMany ? hooks_.locate(wanted.node, id) : std::nullopt;
    MutexLock lock(mu_);
    const bool fits = at && at->orphan == 0 && (batch->items.empty() || at->root == batch->root);
    auto fetch = fits && !closed_ ? begin_prefetch_locked(wanted) : nullptr;
    if (!fetch) {
      spared += wanted.attr.size;
      continue;
    }
    fetch->at = *at;
    batch->root = at->root;
    batch->bytes += wanted.attr.size;
    batch->items.push_back({std::move(at->path), id});
    batch->fetches.push_back(std::move(fetch));
  }
  if (batch->items.empty()) return spared;
  wire::ReadMany call;
  call.root = batch->root;
  call.max_file =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(options_.whole_file_bytes, wire::kMaxWriteBytes));
  call.max_total = 2 * batch->bytes;
  call.items = std::move(batch->items);
  api::CallOptions options;
  options.deadline = Clock::now() + options_.deadline;
  options.lane = api::Lane::kBulk;
  link_.call(wire::Method::kReadMany, wire::encode(call),
             std::make_unique<BatchSink>(shared_from_this(), batch), options);
  return spared;
}

void BlockCache::Impl::take(const BatchPtr& batch, wire::ByteView bytes) {
  Step step;
  {
    MutexLock lock(mu_);
    if (batch->broken) return;
    stats_.fetched += bytes.size();
    auto& partial = batch->partial;
    partial.insert(partial.end(), bytes.begin(), bytes.end());
    std::size_t used = 0;
    while (partial.size() - used >= sizeof(std::uint32_t)) {
      std::uint32_t size = 0;
      std::memcpy(&size, partial.data() + used, sizeof size);
      if (size > kMaxRecord) {
        batch->broken = true;
        break;
      }
      if (partial.size() - used - sizeof size < size) break;
      auto record =
          wire::decode<wire::ReadManyRecord>(wire::ByteView(partial).subspan(used + sizeof size, size));
      used += sizeof size + size;
      if (!record || record->index >= batch->fetches.size()) {
        batch->broken = true;
        break;
      }
      take_record_locked(*batch, std::move(*record), step);
    }
    partial.erase(partial.begin(), partial.begin() + static_cast<std::ptrdiff_t>(used));
    if (batch->broken) partial = {};
    evict_locked();
    pump_locked(step);
  }
  run(step);
}

void BlockCache::Impl::take_record_locked(Batch& batch, wire::ReadManyRecord&& record, Step& step) {
  const FetchPtr fetch = std::exchange(batch.fetches[record.index], nullptr);
  if (!fetch) return;
  File& file = *fetch->file;
  const bool fits = record.error == 0 && record.data.size() == fetch->end &&
                    fetch->stamp == Stamp(record.attr) &&
                    wire::NodeId{record.attr.dev, record.attr.ino} == file.id;
  // Anything else: who wants it asks by himself and learns what is the matter.
  if (!fits) return drop_locked(fetch, EAGAIN, step);
  for (std::size_t at = 0; at < record.data.size();) {
    const auto n = std::min<std::size_t>(options_.block_bytes, record.data.size() - at);
    const auto from = record.data.begin() + static_cast<std::ptrdiff_t>(at);
    fetch->building.assign(from, from + static_cast<std::ptrdiff_t>(n));
    at += n;
    fetch->position = at;
    commit_locked(*fetch, step);
  }
  --file.running;
  ring_locked(fetch->file);
  tidy_locked(fetch->file);
}

// The bytes do not come this way; readers who wait for them get a call of their own.
void BlockCache::Impl::drop_locked(const FetchPtr& fetch, int error, Step& step) {
  const FilePtr file = fetch->file;
  --file->running;
  if (error == ETIMEDOUT) {
    fail_locked(fetch, error, step);
  } else {
    replace_locked(fetch);
  }
  ring_locked(file);
  tidy_locked(file);
}

// Calls of their own for those who wait for a prefetch, once.
void BlockCache::Impl::replace_locked(const FetchPtr& fetch) {
  const FilePtr file = fetch->file;
  unpend_locked(fetch);
  if (closed_ || std::exchange(fetch->replaced, true)) return;
  bool older = false;  // readers who began before the content changed: nothing else brings them theirs
  for (const auto& waiter : file->waiters) {
    if (waiter.generation == file->generation) {
      plan_waiter_locked(file, waiter.offset, waiter.length);
    } else {
      older = older || waiter.generation == fetch->generation;
    }
  }
  if (!older) return;
  auto own = std::make_shared<Fetch>();
  own->file = file;
  own->generation = fetch->generation;
  own->stamp = fetch->stamp;
  own->end = fetch->end;
  file->queue.push_front(std::move(own));
  ring_locked(file);
}

void BlockCache::Impl::ended(const BatchPtr& batch, int error) {
  Step step;
  {
    MutexLock lock(mu_);
    for (auto& slot : batch->fetches) {
      if (const auto fetch = std::exchange(slot, nullptr)) drop_locked(fetch, error, step);
    }
    pump_locked(step);
  }
  run(step);
  batch->ended();
}

// ---- readers of what is on the way in a batch

// A file may be stuck behind another one of its batch: after a while its reader asks by himself.
void BlockCache::Impl::wait_with_patience_locked(const FilePtr& file, Step& step) {
  if (file->pending.empty()) return;
  const FetchPtr& fetch = file->pending.begin()->second;
  if (fetch->prefetch && !std::exchange(fetch->impatient, true)) step.patience.push_back(fetch);
}

void BlockCache::Impl::be_patient(const FetchPtr& fetch) {
  if (!hooks_.later) return;
  const auto trips = std::chrono::duration_cast<std::chrono::milliseconds>(2 * link_.status().rtt);
  hooks_.later(options_.prefetch_patience + trips, [weak = weak_from_this(), fetch] {
    if (const auto self = weak.lock()) self->lose_patience(fetch);
  });
}

void BlockCache::Impl::lose_patience(const FetchPtr& fetch) {
  Step step;
  {
    MutexLock lock(mu_);
    if (closed_ || fetch->position == fetch->end) return;
    replace_locked(fetch);
    pump_locked(step);
  }
  run(step);
}

}  // namespace nearbox::fs
