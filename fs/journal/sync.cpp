// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fcntl.h>

#include "client/base/fault.h"
#include "fs/journal/journal_impl.h"

// What waits for the disk: making things durable, and giving space back.
namespace nearbox::journal {

using base::MutexLock;
using Clock = std::chrono::steady_clock;

namespace {
bool disk_full(const base::Error& error) { return error.as_errno() == ENOSPC || error.as_errno() == EDQUOT; }
}  // namespace

base::Result<void> Journal::Impl::sync(Clock::time_point deadline) {
  {
    MutexLock lock(mu_);
    while (syncing_) {
      if (Clock::now() >= deadline) return base::errno_error(ETIMEDOUT, "sync the journal " + dir_);
      (void)synced_.wait_until(mu_, deadline);
    }
    syncing_ = true;
  }
  auto result = sync_alone();
  MutexLock lock(mu_);
  syncing_ = false;
  synced_.notify_all();
  return result;
}

base::Result<void> Journal::Impl::sync_alone() {
  if (auto rescued = rescue(); !rescued) return rescued;
  if (auto passed = pass(); !passed) return passed;
  // The promise is kept. What follows is about space alone and is tried again next time.
  for (std::size_t i = 0; i < kMaxMovesPerSync; ++i) {
    std::uint64_t index = 0;
    {
      MutexLock lock(mu_);
      index = worth_moving_locked();
    }
    if (index == 0 || !move_out(index) || !pass()) break;
  }
  return {};
}

// Copies of what lies in segments whose sync failed: a second sync of these would say nothing.
base::Result<void> Journal::Impl::rescue() {
  std::vector<std::uint64_t> suspects;
  {
    MutexLock lock(mu_);
    for (const auto& [index, segment] : segments_) {
      if (segment.suspect && segment.live > 0) suspects.push_back(index);
    }
  }
  for (const auto index : suspects) {
    if (auto moved = move_out(index); !moved)
      return std::move(moved).error().during("save from a failed sync");
  }
  return {};
}

base::Result<void> Journal::Impl::pass() {
  Pass pass;
  auto begun = pass_begin(pass);
  auto flushed = pass_flush(pass);
  if (!flushed) return flushed;
  if (begun || disk_full(begun.error())) pass_end(pass);
  return begun;
}

// Nothing is live, so nothing would be replayed but what was acknowledged; on a full disk, where that
// cannot be written down, removing the segments, oldest first, is the only way to give space back.
void Journal::Impl::empty_for_lack_of_acks_locked(Pass& pass) {
  if (!live_.empty()) return;
  active_ = nullptr;
  for (const auto& [index, segment] : segments_) pass.dead.push_back(index);
}

// Files that have grown although little of them counts.
void Journal::Impl::trim_locked() {
  if (active_ != nullptr && live_.empty() && active_->end > options_.idle_bytes) active_ = nullptr;
  if (acks_ && acks_->end > options_.idle_bytes + 2 * kAckBytes * live_.size()) acks_stale_ = true;
}

base::Result<Journal::Impl::Fd> Journal::Impl::fd_locked(Segment& segment) {
  if (segment.fd) return segment.fd;
  auto fd = std::make_shared<IoFd>(
      io_, io_.openat(dir_fd_.get(), segment.name.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0));
  if (!*fd) return base::last_errno("open " + dir_ + "/" + segment.name);
  segment.fd = fd;
  return fd;
}

base::Result<void> Journal::Impl::pass_begin(Pass& pass) {
  MutexLock lock(mu_);
  trim_locked();
  base::Result<void> result;
  if (acks_stale_) {
    result = new_acks_locked();
    if (!result && disk_full(result.error())) empty_for_lack_of_acks_locked(pass);
  }
  for (auto& [index, segment] : segments_) {
    if (result && dead_locked(segment)) pass.dead.push_back(index);
    // What is acknowledged need not be durable, only the acknowledgement.
    if (segment.live == 0 || !segment.dirty) continue;
    auto fd = fd_locked(segment);
    if (!fd) {
      result = std::move(fd).error();
      continue;
    }
    segment.dirty = false;
    pass.segments.emplace_back(index, *fd);
  }
  if (result && acks_) {
    if (acks_->dirty) pass.acks.emplace(acks_->index, acks_->fd);
    acks_->dirty = false;
    pass.old_acks = old_acks_;
  }
  pass.dir = std::exchange(dir_dirty_, false);
  return result;
}

base::Result<void> Journal::Impl::pass_flush(const Pass& pass) {
  if (base::fault::active("journal.no_fsync")) return {};
  base::Result<void> result;
  for (const auto& [index, fd] : pass.segments) {
    if (io_.fdatasync(fd->get()) == 0) continue;
    result = base::last_errno("sync the journal " + dir_);
    MutexLock lock(mu_);
    const auto it = segments_.find(index);
    if (it == segments_.end()) continue;
    it->second.suspect = true;
    if (active_ == &it->second) active_ = nullptr;
  }
  if (pass.acks && io_.fdatasync(pass.acks->second->get()) != 0) {
    result = base::last_errno("sync the journal " + dir_);
    MutexLock lock(mu_);
    if (acks_ && acks_->index == pass.acks->first) acks_stale_ = true;
  }
  if (pass.dir && io_.fsync(dir_fd_.get()) != 0) {
    result = base::last_errno("sync the journal " + dir_);
    MutexLock lock(mu_);
    dir_dirty_ = true;
  }
  return result;
}

// What the pass made superfluous leaves.
void Journal::Impl::pass_end(const Pass& pass) {
  for (const auto index : pass.dead) {
    Fd fd;  // closed without the lock: the kernel frees the file's pages then
    std::string name;
    {
      MutexLock lock(mu_);
      const auto& segment = segments_.at(index);
      name = segment.name;
    }
    if (io_.unlinkat(dir_fd_.get(), name.c_str()) != 0 && errno != ENOENT) continue;
    MutexLock lock(mu_);
    const auto it = segments_.find(index);
    fd = std::move(it->second.fd);
    disk_ -= it->second.end;
    segments_.erase(it);
  }
  std::vector<OldFile> litter;
  {
    MutexLock lock(mu_);
    litter.swap(litter_);
  }
  const auto remove = [this](const OldFile& file) {
    return io_.unlinkat(dir_fd_.get(), file.name.c_str()) == 0 || errno == ENOENT;
  };
  for (const auto& file : litter) {
    const bool gone = remove(file);
    MutexLock lock(mu_);
    if (gone) {
      disk_ -= file.bytes;
    } else {
      litter_.push_back(file);
    }
  }
  for (const auto& file : pass.old_acks) {
    if (!remove(file)) continue;
    MutexLock lock(mu_);
    disk_ -= file.bytes;
    std::erase_if(old_acks_, [&](const OldFile& old) { return old.name == file.name; });
  }
}

// The sealed segment that keeps the most space for the least, when space that is kept for nothing adds up.
std::uint64_t Journal::Impl::worth_moving_locked() const {
  std::uint64_t total = 0;
  std::uint64_t live = 0;
  const Segment* best = nullptr;
  for (const auto& [index, segment] : segments_) {
    total += segment.end;
    live += segment.live_bytes;
    if (&segment == active_ || segment.live == 0) continue;
    if (best == nullptr || segment.live_bytes < best->live_bytes) best = &segment;
  }
  const bool wasteful = total - live >= options_.segment_bytes && (total - live) * 2 >= total;
  const bool many = segments_.size() >= kManySegments;
  if (best == nullptr) return 0;
  const bool worth = (wasteful && best->live_bytes * 2 <= best->end) ||
                     (many && best->live_bytes * 2 <= options_.segment_bytes);
  if (!worth || disk_ + best->live_bytes + 2 * kFileHeaderBytes > options_.max_bytes) return 0;
  return best->index;
}

base::Result<void> Journal::Impl::move_out(std::uint64_t index) {
  std::vector<std::pair<Seq, Slot>> slots;
  Fd fd;
  std::uint64_t salt = 0;
  {
    MutexLock lock(mu_);
    auto& segment = segments_.at(index);  // only a sync removes segments, and this is the one
    auto opened = fd_locked(segment);
    if (!opened) return std::move(opened).error();
    fd = *opened;
    salt = segment.salt;
    for (const auto& [seq, slot] : live_) {
      if (slot.segment == &segment) slots.emplace_back(seq, slot);
    }
  }
  const auto limit = std::min<std::uint64_t>(kMaxMoveBytes, options_.segment_bytes - kFileHeaderBytes);
  std::size_t first = 0;
  while (first < slots.size()) {
    std::size_t last = first + 1;
    std::uint64_t bytes = slots[first].second.bytes;
    while (last < slots.size() && last - first < kMaxBatch && bytes + slots[last].second.bytes <= limit) {
      bytes += slots[last++].second.bytes;
    }
    auto moved = move_some(fd, salt, std::span(slots).subspan(first, last - first));
    if (!moved) return moved;
    first = last;
  }
  return {};
}

base::Result<void> Journal::Impl::move_some(const Fd& fd, std::uint64_t salt,
                                            std::span<const std::pair<Seq, Slot>> slots) {
  Batch batch;
  wire::Bytes record;
  for (const auto& [seq, slot] : slots) {
    record.resize(static_cast<std::size_t>(slot.bytes));
    std::size_t at = 0;
    while (at < record.size()) {
      const ssize_t n =
          io_.pread(fd->get(), record.data() + at, record.size() - at, static_cast<off_t>(slot.offset + at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return base::errno_error(n < 0 ? errno : EIO, "read the journal " + dir_ + " back");
      at += static_cast<std::size_t>(n);
    }
    const auto payload = sound_payload(record, salt, seq);
    if (!payload) return base::errno_error(EIO, "a record of the journal " + dir_ + " changed on the disk");
    batch.begin(RecordType::kMoved, seq);
    batch.copy(*payload);
    batch.end();
  }
  MutexLock lock(mu_);
  std::uint64_t at = 0;
  Segment* segment = nullptr;
  if (disk_ + batch.bytes() + kFileHeaderBytes > options_.max_bytes) {
    return base::errno_error(kFull, "the journal " + dir_ + " is full");
  }
  if (auto put = put_locked(batch, at, segment); !put) return put;
  for (const auto& [seq, slot] : slots) {
    move_slot_locked(seq, *segment, at);
    at += slot.bytes;
  }
  return {};
}

}  // namespace nearbox::journal
