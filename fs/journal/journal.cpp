// SPDX-License-Identifier: Apache-2.0
#include "fs/journal/journal.h"

#include <algorithm>
#include <fcntl.h>

#include "fs/journal/journal_impl.h"

namespace nearbox::journal {

using base::MutexLock;

std::string Damage::message() const {
  std::string text = "journal: ";
  if (!file.empty()) text += file + " is damaged at byte " + std::to_string(offset) + ": ";
  if (acks) {
    text += "acknowledgements are missing, operations may be sent again";
  } else {
    text += lost == 0 ? "records may be missing" : std::to_string(lost) + " records are missing";
  }
  if (!kept_as.empty()) text += "; the file is kept as " + kept_as;
  return text;
}

// What is there, what this adds, and what acknowledging all of it takes, leave half a segment for
// housekeeping: a snapshot, or the records of a segment that is emptied.
bool Journal::Impl::room_locked(std::uint64_t bytes, std::size_t records) const {
  if (live_.size() + records > options_.max_records) return false;
  const std::uint64_t acks = kAckBytes * (live_.size() + records);
  return disk_ + bytes + 2 * kFileHeaderBytes + acks + options_.segment_bytes / 2 <= options_.max_bytes;
}

// All of it, or nothing: the file is cut back to `at`. Where even that fails, `cut` is false.
base::Result<void> Journal::Impl::write_locked(int fd, const Batch& batch, std::uint64_t at, bool& cut) {
  auto iov = batch.iov();
  std::size_t first = 0;
  auto place = static_cast<off_t>(at);
  cut = true;
  while (first < iov.size()) {
    const ssize_t n = io_.pwritev(fd, iov.data() + first, static_cast<int>(iov.size() - first), place);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : EIO;
      cut = io_.ftruncate(fd, static_cast<off_t>(at)) == 0;
      return base::errno_error(error, "write to the journal " + dir_);
    }
    place += n;
    auto left = static_cast<std::size_t>(n);
    while (first < iov.size() && left >= iov[first].iov_len) left -= iov[first++].iov_len;
    if (left == 0) continue;
    iov[first].iov_base = static_cast<std::byte*>(iov[first].iov_base) + left;
    iov[first].iov_len -= left;
  }
  return {};
}

// A new file with its header, and `first` behind it in the same write.
base::Result<Journal::Impl::NewFile> Journal::Impl::create_locked(FileKind kind, Batch* first) {
  NewFile out;
  out.index = next_index_++;
  out.name = kind == FileKind::kSegment ? segment_name(out.index) : acks_name(out.index);
  const ssize_t n = io_.getrandom(&out.salt, sizeof(out.salt));
  if (n != static_cast<ssize_t>(sizeof(out.salt))) {
    return base::errno_error(n < 0 ? errno : EIO, "random number for the journal");
  }
  out.fd = std::make_shared<IoFd>(io_, io_.openat(dir_fd_.get(), out.name.c_str(),
                                                  O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!*out.fd) return base::last_errno("make " + dir_ + "/" + out.name);
  dir_dirty_ = true;
  const auto header = encode_header({kind, out.salt, out.index, next_seq_});
  Batch whole;
  whole.raw(header);
  if (first != nullptr) first->seal(out.salt, next_seq_);
  bool cut = true;
  auto written = write_locked(out.fd->get(), whole, 0, cut);
  if (written && first != nullptr) written = write_locked(out.fd->get(), *first, kFileHeaderBytes, cut);
  out.end = kFileHeaderBytes + (first == nullptr ? 0 : first->bytes());
  if (written) {
    disk_ += out.end;
    return out;
  }
  if (io_.unlinkat(dir_fd_.get(), out.name.c_str()) != 0) {
    const std::uint64_t bytes = cut ? kFileHeaderBytes : out.end;
    litter_.push_back({out.name, bytes});
    disk_ += bytes;
  }
  return std::move(written).error();
}

base::Result<Journal::Impl::Segment*> Journal::Impl::segment_for_locked(std::uint64_t bytes) {
  if (active_ != nullptr && active_->end + bytes <= options_.segment_bytes) return active_;
  // Numbers of segments that left are accounted for by the file of acknowledgements alone.
  if (acks_stale_) {
    if (auto made = new_acks_locked(); !made) return std::move(made).error();
  }
  auto file = create_locked(FileKind::kSegment, nullptr);
  if (!file) return std::move(file).error();
  Segment segment;
  segment.index = file->index;
  segment.name = std::move(file->name);
  segment.fd = std::move(file->fd);
  segment.salt = file->salt;
  segment.end = file->end;
  active_ = &segments_.emplace(file->index, std::move(segment)).first->second;
  return active_;
}

// Writes a batch to the active segment; `at` is where it begins.
base::Result<void> Journal::Impl::put_locked(Batch& batch, std::uint64_t& at, Segment*& segment) {
  auto found = segment_for_locked(batch.bytes());
  if (!found) return std::move(found).error();
  segment = *found;
  at = segment->end;
  batch.seal(segment->salt, next_seq_);
  bool cut = true;
  auto written = write_locked(segment->fd->get(), batch, at, cut);
  if (!written) {
    // What is left there is incomplete and counts as torn; but nothing may follow it.
    if (!cut) {
      segment->end += batch.bytes();
      disk_ += batch.bytes();
      active_ = nullptr;
    }
    return written;
  }
  segment->end += batch.bytes();
  segment->dirty = true;
  disk_ += batch.bytes();
  return {};
}

Journal::Impl::Labels::iterator Journal::Impl::label_locked(std::string_view label, std::uint64_t bytes) {
  auto it = labels_.find(label);
  if (it == labels_.end()) it = labels_.emplace(std::string(label), Label{}).first;
  ++it->second.records;
  it->second.bytes += bytes;
  live_bytes_ += bytes;
  return it;
}

base::Result<Seq> Journal::Impl::append(std::span<const Record> records) {
  if (records.empty() || records.size() > kMaxBatch) return base::errno_error(EMSGSIZE, "journal: batch");
  Batch batch;
  for (const auto& record : records) {
    if (record.label.size() > kMaxLabel || record.root.size() > kMaxLabel ||
        record.parts.size() > kMaxParts || record_payload(record) > kMaxRecordBytes) {
      return base::errno_error(EMSGSIZE, "journal: record");
    }
    add_record(batch, RecordType::kNew, 0, record);
  }
  if (batch.bytes() > options_.segment_bytes - kFileHeaderBytes) {
    return base::errno_error(EMSGSIZE, "journal: batch");
  }
  MutexLock lock(mu_);
  if (!room_locked(batch.bytes(), records.size())) {
    return base::errno_error(kFull, "the journal " + dir_ + " is full");
  }
  std::uint64_t at = 0;
  Segment* segment = nullptr;
  if (auto put = put_locked(batch, at, segment); !put) return std::move(put).error();
  const Seq first = next_seq_;
  for (std::size_t i = 0; i < records.size(); ++i) {
    const std::uint64_t bytes = batch.record_bytes(i);
    live_.emplace_hint(live_.end(), next_seq_++,
                       Slot{segment, at, bytes, label_locked(records[i].label, bytes)});
    segment->live_bytes += bytes;
    at += bytes;
  }
  segment->live += records.size();
  return first;
}

void Journal::Impl::drop_live_locked(std::map<Seq, Slot>::iterator it) {
  Slot& slot = it->second;
  --slot.segment->live;
  slot.segment->live_bytes -= slot.bytes;
  live_bytes_ -= slot.bytes;
  slot.label->second.bytes -= slot.bytes;
  if (--slot.label->second.records == 0) labels_.erase(slot.label);
  live_.erase(it);
}

// The record was written again, at `at` of `segment`. One that was acknowledged meanwhile has no slot.
void Journal::Impl::move_slot_locked(Seq seq, Segment& segment, std::uint64_t at) {
  const auto it = live_.find(seq);
  if (it == live_.end()) return;
  Slot& slot = it->second;
  --slot.segment->live;
  slot.segment->live_bytes -= slot.bytes;
  slot.segment = &segment;
  slot.offset = at;
  ++segment.live;
  segment.live_bytes += slot.bytes;
}

namespace {
void add_to(std::vector<Range>& ranges, Seq seq) {
  if (!ranges.empty() && ranges.back().end() == seq) {
    ++ranges.back().count;
  } else {
    ranges.push_back({seq, 1});
  }
}
}  // namespace

std::vector<Range> Journal::Impl::live_ranges_locked() const {
  std::vector<Range> ranges;
  for (const auto& [seq, slot] : live_) add_to(ranges, seq);
  return ranges;
}

// A new file of acknowledgements that says what is live now: it replaces all others once it is durable.
base::Result<void> Journal::Impl::new_acks_locked() {
  Batch batch;
  add_snapshot(batch, next_seq_, live_ranges_locked());
  if (disk_ + kFileHeaderBytes + batch.bytes() > options_.max_bytes) {
    return base::errno_error(kFull, "the journal " + dir_ + " is full");
  }
  auto file = create_locked(FileKind::kAcks, &batch);
  if (!file) return std::move(file).error();
  if (acks_) old_acks_.push_back({acks_->name, acks_->end});
  acks_ = AckFile{file->index, std::move(file->name), std::move(file->fd), file->salt, file->end, true};
  acks_stale_ = false;
  return {};
}

base::Result<void> Journal::Impl::write_acks_locked(std::span<const Range> ranges) {
  if (!acks_ || acks_stale_) {
    acks_stale_ = true;
    return new_acks_locked();
  }
  Batch batch;
  add_acks(batch, ranges);
  batch.seal(acks_->salt, 0);
  if (disk_ + batch.bytes() > options_.max_bytes) {  // what was kept back is in use just now
    acks_stale_ = true;
    return base::errno_error(kFull, "the journal " + dir_ + " is full");
  }
  bool cut = true;
  auto written = write_locked(acks_->fd->get(), batch, acks_->end, cut);
  if (!written) {
    acks_stale_ = true;
    if (!cut) acks_->end += batch.bytes(), disk_ += batch.bytes();
    return written;
  }
  acks_->end += batch.bytes();
  acks_->dirty = true;
  disk_ += batch.bytes();
  return {};
}

base::Result<void> Journal::Impl::acknowledge(std::span<const Seq> seqs) {
  std::vector<Seq> sorted(seqs.begin(), seqs.end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<Range> ranges;
  MutexLock lock(mu_);
  for (const Seq seq : sorted) {
    const auto it = live_.find(seq);
    if (it == live_.end()) continue;
    drop_live_locked(it);
    add_to(ranges, seq);
  }
  if (ranges.empty()) return {};
  return write_acks_locked(ranges);
}

bool Journal::Impl::needs_sync() const {
  MutexLock lock(mu_);
  if (acks_stale_ || dir_dirty_ || !litter_.empty() || (acks_ && (acks_->dirty || !old_acks_.empty())))
    return true;
  if (active_ != nullptr && live_.empty() && active_->end > options_.idle_bytes) return true;
  for (const auto& [index, segment] : segments_) {
    if (dead_locked(segment) || (segment.live > 0 && (segment.dirty || segment.suspect))) return true;
  }
  return false;
}

Stats Journal::Impl::stats() const {
  MutexLock lock(mu_);
  Stats out;
  out.records = live_.size();
  out.bytes = live_bytes_;
  out.disk_bytes = disk_;
  for (const auto& file : aside_) out.aside_bytes += file.bytes;
  out.segments = segments_.size();
  out.unsynced = acks_stale_ || dir_dirty_ || (acks_ && acks_->dirty);
  for (const auto& [index, segment] : segments_) {
    if (segment.live > 0 && (segment.dirty || segment.suspect)) out.unsynced = true;
  }
  for (const auto& [label, count] : labels_) out.labels.push_back({label, count.records, count.bytes});
  return out;
}

base::Result<void> Journal::Impl::discard_aside() {
  std::vector<OldFile> files;
  {
    MutexLock lock(mu_);
    files.swap(aside_);
  }
  base::Result<void> result;
  for (auto& file : files) {
    const bool gone = io_.unlinkat(dir_fd_.get(), file.name.c_str()) == 0 || errno == ENOENT;
    if (!gone) result = base::last_errno("remove " + dir_ + "/" + file.name);
    MutexLock lock(mu_);
    if (gone) {
      disk_ -= file.bytes;
    } else {
      aside_.push_back(std::move(file));
    }
  }
  return result;
}

Journal::Journal(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Journal::~Journal() = default;
base::Result<Seq> Journal::append(std::span<const Record> records) { return impl_->append(records); }
base::Result<void> Journal::acknowledge(std::span<const Seq> seqs) { return impl_->acknowledge(seqs); }
base::Result<void> Journal::sync(std::chrono::steady_clock::time_point deadline) {
  return impl_->sync(deadline);
}
bool Journal::needs_sync() const { return impl_->needs_sync(); }
Stats Journal::stats() const { return impl_->stats(); }
base::Result<void> Journal::discard_aside() { return impl_->discard_aside(); }

}  // namespace nearbox::journal
