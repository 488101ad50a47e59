// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fcntl.h>
#include <sys/file.h>

#include "fs/journal/journal_impl.h"

// Opening a journal: whose it is, what is in it, and what cannot be believed.
namespace nearbox::journal {

using base::MutexLock;

namespace {

// mkdir -p with mode 0700; what is made is made durable in its parent.
base::Result<void> make_dirs(Io& io, const std::string& path) {
  for (std::size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at);
    const std::string part = path.substr(0, at);
    if (at != std::string::npos) ++at;
    if (io.mkdir(part.c_str(), 0700) != 0) {
      if (errno == EEXIST) continue;
      return base::last_errno("make directory " + part);
    }
    const auto slash = part.rfind('/');
    const std::string parent = slash == 0 ? "/" : slash == std::string::npos ? "." : part.substr(0, slash);
    auto fd = open_dir(io, parent);
    if (!fd) return std::move(fd).error();
    if (io.fsync(fd->get()) != 0) return base::last_errno("sync directory " + parent);
  }
  return {};
}

base::Result<IoFd> take_lock(Io& io, int dir_fd, const std::string& dir) {
  IoFd fd(io, io.openat(dir_fd, kLockName, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return base::last_errno("journal " + dir + "/" + kLockName);
  while (io.flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK)
      return base::errno_error(EBUSY, "journal " + dir + " is in use by another process");
    return base::last_errno("lock journal " + dir);
  }
  return fd;
}

// Whether a process has the journal open. Asked only where something looks wrong: the answer takes the
// lock for a moment.
bool owned(Io& io, int dir_fd) {
  const IoFd fd(io, io.openat(dir_fd, kLockName, O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0));
  return fd && io.flock(fd.get(), LOCK_SH | LOCK_NB) != 0;
}

// Splits what was read into what is replayed and what lies behind a gap.
Contents contents_of(Loaded& loaded) {
  Contents out;
  for (auto& [seq, record] : loaded.records) {
    auto& list = loaded.missing != 0 && seq > loaded.missing ? out.aside : out.records;
    list.push_back(std::move(record.stored));
  }
  out.damages = std::move(loaded.damages);
  out.lost = loaded.lost;
  out.torn_bytes = loaded.torn_bytes;
  return out;
}

bool behind_gap(const Loaded& loaded, Seq seq) { return loaded.missing != 0 && seq > loaded.missing; }

}  // namespace

void Journal::Impl::take_over_locked(Loaded& loaded) {
  next_seq_ = loaded.next_seq;
  next_index_ = loaded.next_index;
  disk_ = loaded.disk_bytes;
  for (const auto& file : loaded.segments) {
    Segment segment;
    segment.index = file.index;
    segment.name = file.name;
    segment.salt = file.header.salt;
    segment.end = file.size;
    segment.dirty = true;  // nobody knows whether the process before synced it
    segments_.emplace(file.index, std::move(segment));
  }
  for (const auto& [seq, record] : loaded.records) {
    if (behind_gap(loaded, seq)) continue;
    Segment& segment = segments_.at(loaded.segments[record.file].index);
    ++segment.live;
    segment.live_bytes += record.bytes;
    live_.emplace_hint(
        live_.end(), seq,
        Slot{&segment, record.offset, record.bytes, label_locked(record.stored.label, record.bytes)});
  }
  for (const auto& file : loaded.acks) old_acks_.push_back({file.name, file.size});
  // Files are never appended to by a second process: their ends may be torn.
  acks_stale_ = !loaded.segments.empty() || loaded.acks.size() > 1 || loaded.acks_uncertain;
}

// Cutting is for the eye: a torn end is known by what it is. So a failure is no matter.
void Journal::Impl::cut_torn_locked(const Loaded& loaded) {
  for (const auto& file : loaded.segments) {
    if (file.tail != Tail::kTorn || file.harmful || file.size == file.end) continue;
    Segment& segment = segments_.at(file.index);
    const auto fd = fd_locked(segment);
    if (!fd || io_.ftruncate((*fd)->get(), static_cast<off_t>(file.end)) != 0) continue;
    disk_ -= segment.end - file.end;
    segment.end = file.end;
  }
}

// Copies into new segments what is good in files that are about to leave. No acknowledgements are written
// here: a snapshot would say of what lies behind the gap that it was dealt with.
base::Result<void> Journal::Impl::carry(const std::vector<const LoadedRecord*>& records) {
  std::vector<Fd> written;
  {
    MutexLock lock(mu_);
    acks_stale_ = false;
    for (const auto* record : records) {
      std::vector<Part> parts;
      for (const auto& part : record->stored.parts) parts.push_back({part.kind, part.bytes});
      Batch batch;
      add_record(batch, RecordType::kMoved, record->stored.seq,
                 {record->stored.order, record->stored.label, record->stored.root, record->stored.op, parts});
      std::uint64_t at = 0;
      Segment* segment = nullptr;
      if (auto put = put_locked(batch, at, segment); !put) return put;
      if (written.empty() || written.back() != segment->fd) written.push_back(segment->fd);
      move_slot_locked(record->stored.seq, *segment, at);
    }
    active_ = nullptr;
  }
  for (const auto& fd : written) {
    if (io_.fdatasync(fd->get()) != 0) return base::last_errno("sync the journal " + dir_);
  }
  return written.empty() ? base::Result<void>() : sync_dir();
}

base::Result<void> Journal::Impl::sync_dir() {
  if (io_.fsync(dir_fd_.get()) != 0) return base::last_errno("sync the journal " + dir_);
  return {};
}

base::Result<void> Journal::Impl::keep_file(Loaded& loaded, const LoadedFile& file, std::uint64_t size,
                                            Seq from) {
  OldFile kept{damaged_name(file.index, from), size};
  if (io_.renameat(dir_fd_.get(), file.name.c_str(), kept.name.c_str()) != 0) {
    return base::last_errno("put " + dir_ + "/" + file.name + " aside");
  }
  for (auto& damage : loaded.damages) {
    if (damage.file == file.name) damage.kept_as = kept.name;
  }
  loaded.aside.push_back({kept.name, kept.bytes});
  MutexLock lock(mu_);
  aside_.push_back(std::move(kept));
  return {};
}

// A copy of what is known to be acknowledged, for whoever reads the files of this gap later. It is renamed
// when it is complete, and never replaced: later ones know less.
base::Result<void> Journal::Impl::keep_acks(Loaded& loaded, Seq from) {
  OldFile kept{damaged_name(0, from), 0};
  for (const auto& file : loaded.aside) {
    if (file.name == kept.name) return {};
  }
  std::vector<Range> open;
  for (const auto& gap : loaded.acknowledged.gaps(1, loaded.next_seq)) {
    open.push_back({gap.first, static_cast<std::uint32_t>(gap.end - gap.first)});
  }
  Batch batch;
  add_snapshot(batch, loaded.next_seq, open);
  kept.bytes = kFileHeaderBytes + batch.bytes();
  NewFile file;
  {
    MutexLock lock(mu_);
    // Without it the same records are told, and acknowledged ones among them.
    if (open.size() > kMaxRanges || disk_ + kept.bytes > options_.max_bytes) return {};
    auto made = create_locked(FileKind::kAcks, &batch);
    if (!made) return std::move(made).error();
    file = std::move(*made);
  }
  if (io_.fdatasync(file.fd->get()) != 0 ||
      io_.renameat(dir_fd_.get(), file.name.c_str(), kept.name.c_str()) != 0) {
    return base::last_errno("put " + dir_ + "/" + file.name + " aside");
  }
  loaded.aside.push_back({kept.name, kept.bytes});
  MutexLock lock(mu_);
  aside_.push_back(std::move(kept));
  return {};
}

// Whoever opens the journal after a crash in between sees the same gap: numbers stay missing until the
// snapshot, which therefore comes last, says that the gap was dealt with.
base::Result<void> Journal::Impl::put_aside(Loaded& loaded, const std::vector<bool>& bad, Seq from) {
  if (std::find(bad.begin(), bad.end(), true) != bad.end()) {
    if (auto kept = keep_acks(loaded, from); !kept) return kept;
  }
  for (std::size_t i = 0; i < loaded.segments.size(); ++i) {
    if (!bad[i]) continue;
    const auto& file = loaded.segments[i];
    std::uint64_t size = 0;
    {
      MutexLock lock(mu_);
      size = segments_.at(file.index).end;
      segments_.erase(file.index);
    }
    if (auto kept = keep_file(loaded, file, size, from); !kept) return kept;
  }
  if (auto synced = sync_dir(); !synced) return synced;
  const auto damaged = [&](const std::string& name) {
    return std::any_of(loaded.damages.begin(), loaded.damages.end(),
                       [&](const Damage& damage) { return damage.file == name; });
  };
  {
    MutexLock lock(mu_);
    acks_stale_ = true;
    std::erase_if(old_acks_, [&](const OldFile& old) { return damaged(old.name); });
  }
  if (auto passed = pass(); !passed) return passed;
  for (const auto& file : loaded.acks) {
    if (!damaged(file.name)) continue;
    if (auto kept = keep_file(loaded, file, file.size, from); !kept) return kept;
  }
  return {};
}

base::Result<void> Journal::Impl::repair(Loaded& loaded) {
  if (loaded.missing == 0 && loaded.damages.empty()) return {};
  std::vector<bool> bad(loaded.segments.size());
  for (std::size_t i = 0; i < bad.size(); ++i) bad[i] = loaded.segments[i].harmful;
  for (const auto& [seq, record] : loaded.records) {
    if (behind_gap(loaded, seq)) bad[record.file] = true;
  }
  std::vector<const LoadedRecord*> carried;
  for (const auto& [seq, record] : loaded.records) {
    if (bad[record.file] && !behind_gap(loaded, seq)) carried.push_back(&record);
  }
  if (auto done = carry(carried); !done) return done;
  return put_aside(loaded, bad, loaded.missing != 0 ? loaded.missing : loaded.next_seq);
}

base::Result<Contents> Journal::Impl::adopt(Loaded loaded) {
  {
    MutexLock lock(mu_);
    take_over_locked(loaded);
    for (const auto& file : loaded.aside) aside_.push_back({file.name, file.size});
    cut_torn_locked(loaded);
  }
  if (auto repaired = repair(loaded); !repaired)
    return std::move(repaired).error().during("repair the journal");
  auto aside = load_aside(io_, dir_fd_.get(), loaded.aside);
  if (!aside) return std::move(aside).error();
  auto contents = contents_of(loaded);
  contents.aside = std::move(*aside);
  MutexLock lock(mu_);
  contents.disk_bytes = disk_;
  return contents;
}

base::Result<Journal::Opened> Journal::open(const std::string& dir, const Options& options) {
  Io& io = options.io != nullptr ? *options.io : system_io();
  if (auto made = make_dirs(io, dir); !made) return std::move(made).error().during("journal");
  auto dir_fd = open_dir(io, dir);
  if (!dir_fd) return std::move(dir_fd).error();
  auto lock_fd = take_lock(io, dir_fd->get(), dir);
  if (!lock_fd) return std::move(lock_fd).error();
  auto loaded = load(io, dir_fd->get(), dir);
  if (!loaded) return std::move(loaded).error();
  Options within = options;
  within.max_records = std::min(within.max_records, kMaxRecords);
  within.segment_bytes = std::min(within.segment_bytes, kSegmentBytes);
  auto impl = std::make_unique<Impl>(io, dir, within, std::move(*dir_fd), std::move(*lock_fd));
  auto contents = impl->adopt(std::move(*loaded));
  if (!contents) return std::move(contents).error();
  Opened out;
  out.journal.reset(new Journal(std::move(impl)));
  out.contents = std::move(*contents);
  return out;
}

base::Result<Contents> Journal::list(const std::string& dir, Io* given) {
  Io& io = given != nullptr ? *given : system_io();
  auto dir_fd = open_dir(io, dir);
  if (!dir_fd && dir_fd.error().as_errno() == ENOENT) return Contents{};
  if (!dir_fd) return std::move(dir_fd).error();
  auto loaded = load(io, dir_fd->get(), dir);
  if (!loaded) return std::move(loaded).error();
  // Where a daemon is at work, files come and go while they are read.
  if ((loaded->missing != 0 || !loaded->damages.empty()) && owned(io, dir_fd->get())) {
    loaded->missing = 0;
    loaded->lost = 0;
    loaded->damages.clear();
  }
  auto aside = load_aside(io, dir_fd->get(), loaded->aside);
  if (!aside) return std::move(aside).error();
  auto contents = contents_of(*loaded);
  contents.disk_bytes = loaded->disk_bytes;
  contents.aside.insert(contents.aside.begin(), std::make_move_iterator(aside->begin()),
                        std::make_move_iterator(aside->end()));
  // Some of them may be under either name, when somebody died putting them aside.
  std::sort(contents.aside.begin(), contents.aside.end(),
            [](const Stored& a, const Stored& b) { return a.seq < b.seq; });
  return contents;
}

}  // namespace nearbox::journal
