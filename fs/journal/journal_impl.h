// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "fs/journal/format.h"
#include "fs/journal/journal.h"
#include "fs/journal/load.h"

namespace nearbox::journal {

inline constexpr std::size_t kManySegments = 48;        // from then on small ones are joined
inline constexpr std::size_t kMaxMovesPerSync = 4;      // segments emptied for their space
inline constexpr std::size_t kMaxMoveBytes = 1u << 20;  // written at once while one is emptied

// Files as they are while the journal is open.
//
// A segment is appended to while it is `active_`, then sealed; it is dead when nothing in it is live, and
// leaves once the acknowledgements that made it so are durable. Of the files of acknowledgements the
// newest counts: it begins with a snapshot, so the older ones leave when it is durable.
class Journal::Impl {
 public:
  Impl(Io& io, std::string dir, const Options& options, IoFd dir_fd, IoFd lock_fd)
      : io_(io),
        dir_(std::move(dir)),
        options_(options),
        lock_fd_(std::move(lock_fd)),
        dir_fd_(std::move(dir_fd)) {}

  // Before anybody else has it: takes what was read over, and repairs it (recovery.cpp).
  base::Result<Contents> adopt(Loaded loaded) EXCLUDES(mu_);

  base::Result<Seq> append(std::span<const Record> records) EXCLUDES(mu_);
  base::Result<void> acknowledge(std::span<const Seq> seqs) EXCLUDES(mu_);
  base::Result<void> sync(std::chrono::steady_clock::time_point deadline) EXCLUDES(mu_);
  bool needs_sync() const EXCLUDES(mu_);
  Stats stats() const EXCLUDES(mu_);
  base::Result<void> discard_aside() EXCLUDES(mu_);

 private:
  using Fd = std::shared_ptr<IoFd>;  // shared with a sync() that is under way
  struct Segment {
    std::uint64_t index = 0;
    std::string name;
    Fd fd;  // opened when needed
    std::uint64_t salt = 0;
    std::uint64_t end = 0;  // bytes
    std::size_t live = 0;
    std::uint64_t live_bytes = 0;
    bool dirty = false;    // written since it was last synced
    bool suspect = false;  // a sync of it failed: the kernel may take lost pages for clean
  };
  struct AckFile {
    std::uint64_t index = 0;
    std::string name;
    Fd fd;
    std::uint64_t salt = 0;
    std::uint64_t end = 0;
    bool dirty = true;
  };
  struct Label {
    std::uint64_t records = 0;
    std::uint64_t bytes = 0;
  };
  using Labels = std::map<std::string, Label, std::less<>>;
  struct Slot {
    Segment* segment = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    Labels::iterator label;
  };
  struct OldFile {
    std::string name;
    std::uint64_t bytes = 0;
  };
  struct NewFile {
    std::uint64_t index = 0;
    std::string name;
    Fd fd;
    std::uint64_t salt = 0;
    std::uint64_t end = 0;
  };
  // What one pass over the disk is to make durable, and what may leave after it.
  struct Pass {
    std::vector<std::pair<std::uint64_t, Fd>> segments;
    std::optional<std::pair<std::uint64_t, Fd>> acks;
    bool dir = false;
    std::vector<std::uint64_t> dead;
    std::vector<OldFile> old_acks;
  };

  // journal.cpp
  bool room_locked(std::uint64_t bytes, std::size_t records) const REQUIRES(mu_);
  base::Result<NewFile> create_locked(FileKind kind, Batch* first) REQUIRES(mu_);
  base::Result<void> write_locked(int fd, const Batch& batch, std::uint64_t at, bool& cut) REQUIRES(mu_);
  base::Result<Segment*> segment_for_locked(std::uint64_t bytes) REQUIRES(mu_);
  base::Result<void> put_locked(Batch& batch, std::uint64_t& at, Segment*& segment) REQUIRES(mu_);
  Labels::iterator label_locked(std::string_view label, std::uint64_t bytes) REQUIRES(mu_);
  void move_slot_locked(Seq seq, Segment& segment, std::uint64_t at) REQUIRES(mu_);
  void drop_live_locked(std::map<Seq, Slot>::iterator it) REQUIRES(mu_);
  base::Result<void> write_acks_locked(std::span<const Range> ranges) REQUIRES(mu_);
  base::Result<void> new_acks_locked() REQUIRES(mu_);
  std::vector<Range> live_ranges_locked() const REQUIRES(mu_);

  // sync.cpp
  base::Result<void> sync_alone();
  base::Result<void> rescue();
  base::Result<void> pass();
  base::Result<void> pass_begin(Pass& pass);
  base::Result<void> pass_flush(const Pass& pass);
  void pass_end(const Pass& pass);
  void empty_for_lack_of_acks_locked(Pass& pass) REQUIRES(mu_);
  void trim_locked() REQUIRES(mu_);
  base::Result<Fd> fd_locked(Segment& segment) REQUIRES(mu_);
  std::uint64_t worth_moving_locked() const REQUIRES(mu_);  // a segment's index, or 0
  base::Result<void> move_out(std::uint64_t index);
  base::Result<void> move_some(const Fd& fd, std::uint64_t salt, std::span<const std::pair<Seq, Slot>> slots);
  bool dead_locked(const Segment& segment) const REQUIRES(mu_) {
    return segment.live == 0 && &segment != active_;
  }

  // recovery.cpp
  void take_over_locked(Loaded& loaded) REQUIRES(mu_);
  void cut_torn_locked(const Loaded& loaded) REQUIRES(mu_);
  base::Result<void> carry(const std::vector<const LoadedRecord*>& records);
  base::Result<void> sync_dir();
  base::Result<void> keep_acks(Loaded& loaded, Seq from);
  base::Result<void> keep_file(Loaded& loaded, const LoadedFile& file, std::uint64_t size, Seq from);
  base::Result<void> repair(Loaded& loaded);
  base::Result<void> put_aside(Loaded& loaded, const std::vector<bool>& bad, Seq from);

  Io& io_;
  const std::string dir_;
  const Options options_;
  const IoFd lock_fd_;
  const IoFd dir_fd_;

  mutable base::Mutex mu_;
  base::CondVar synced_;  // syncing_ became false
  std::map<std::uint64_t, Segment> segments_ GUARDED_BY(mu_);
  Segment* active_ GUARDED_BY(mu_) = nullptr;
  std::map<Seq, Slot> live_ GUARDED_BY(mu_);
  Labels labels_ GUARDED_BY(mu_);
  std::optional<AckFile> acks_ GUARDED_BY(mu_);
  bool acks_stale_ GUARDED_BY(mu_) = false;  // acks_ (or what was found) does not say all: a new one is due
  std::vector<OldFile> old_acks_ GUARDED_BY(mu_);  // leave when acks_ is durable
  std::vector<OldFile> litter_ GUARDED_BY(mu_);    // files that could not be made, nor removed again
  std::vector<OldFile> aside_ GUARDED_BY(mu_);
  Seq next_seq_ GUARDED_BY(mu_) = 1;
  std::uint64_t next_index_ GUARDED_BY(mu_) = 1;
  std::uint64_t live_bytes_ GUARDED_BY(mu_) = 0;
  std::uint64_t disk_ GUARDED_BY(mu_) = 0;  // bytes of all files
  bool dir_dirty_ GUARDED_BY(mu_) = false;  // a file was made
  bool syncing_ GUARDED_BY(mu_) = false;
};

}  // namespace nearbox::journal
