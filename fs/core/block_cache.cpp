// SPDX-License-Identifier: Apache-2.0
#include "fs/core/block_cache.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "fs/core/block_cache_impl.h"

namespace nearbox::fs {

using base::MutexLock;
using cache::Clock;
using cache::Fetch;
using cache::FetchPtr;
using cache::File;
using cache::FilePtr;
using cache::Stamp;
using cache::Waiter;

namespace {
constexpr std::uint64_t kFirstWindow = 1024 * 1024;
// Several read-ahead requests of the kernel overtake each other.
constexpr std::uint64_t kSequentialSlack = 512 * 1024;
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
      auto& file = files_[wire::identity(attr)];
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
        wait_with_patience_locked(held, step);
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
    if (!std::exchange(it->second.read, true)) waiter.fetched += it->second.block->size();
    --waiter.missing;
  }
  return waiter.missing == 0;
}

BlockCache::Data BlockCache::Impl::assemble(const Waiter& waiter) const {
  Data data;
  data.fetched = waiter.fetched;
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
      fetch->stamp = file->stamp;
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
  for (const auto& fetch : step.patience) be_patient(fetch);
  for (auto& [done, data] : step.done) done(std::move(data));
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
  const auto it = files_.find(wire::identity(before));
  if (it == files_.end()) return;
  const FilePtr file = it->second;
  // One counter numbers the changes of all files, so the next version of this one is any later number.
  const bool alone = file->stamp == Stamp(before) && before.version != 0 && after.version > before.version;
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

void BlockCache::Impl::forget() {
  MutexLock lock(mu_);
  std::vector<FilePtr> all;
  for (auto& [id, file] : files_) all.push_back(file);
  for (const auto& file : all) {
    renew_locked(*file, file->stamp);
    tidy_locked(file);
  }
}

bool BlockCache::Impl::has(const wire::Attr& attr, std::uint64_t offset, std::size_t length) const {
  if (offset >= attr.size || length == 0) return true;
  MutexLock lock(mu_);
  const auto it = files_.find(wire::identity(attr));
  if (it == files_.end() || !(it->second->stamp == Stamp(attr))) return false;
  const std::uint64_t last = std::min<std::uint64_t>(offset + length, attr.size) - 1;
  for (std::uint64_t number = block_of(offset); number <= block_of(last); ++number) {
    if (!it->second->blocks.contains(number) && !it->second->pending.contains(number)) return false;
  }
  return true;
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
void BlockCache::forget() { impl_->forget(); }

std::uint64_t BlockCache::prefetch(const std::vector<Wanted>& files, std::function<void()> ended) {
  return impl_->prefetch(files, std::move(ended));
}
bool BlockCache::has(const wire::Attr& attr, std::uint64_t offset, std::size_t length) const {
  return impl_->has(attr, offset, length);
}
BlockCacheStats BlockCache::stats() const { return impl_->stats(); }
void BlockCache::close() { impl_->close(); }

}  // namespace nearbox::fs
