// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/base/result.h"
#include "fs/journal/io.h"
#include "fs/journal/record.h"

namespace nearbox::journal {

struct Options {
  std::uint64_t max_bytes = kMaxBytes;
  std::uint64_t segment_bytes = kSegmentBytes;
  std::uint64_t idle_bytes = kIdleBytes;
  std::size_t max_records = kMaxRecords;
  Io* io = nullptr;  // tests give their own
};

// append() has no room by the journal's own limits (not the disk's): to be tried again when something was
// acknowledged and synced.
inline constexpr int kFull = ENOBUFS;

// Something in a file that makes no sense, and is not just the torn end of what never returned.
struct Damage {
  std::string file;             // its name in the journal's directory
  std::uint64_t offset = 0;     // of the first byte that makes no sense
  std::uint64_t bytes = 0;      // from there to its end
  std::uint64_t lost = 0;       // records known to be missing; 0: cannot be told
  bool acks = false;            // it told acknowledgements: what the sandbox has may be replayed again
  std::string kept_as;          // what the file is called now; empty: it stayed
  std::string message() const;  // for a log or a person
};

// What a journal holds.
struct Contents {
  std::vector<Stored> records;  // not acknowledged, in order of seq
  // Readable records behind a damaged place. They are not in `records`, since one before them is missing.
  // They stay in files named damaged-*, for a person to decide.
  std::vector<Stored> aside;
  std::vector<Damage> damages;   // found now
  std::uint64_t lost = 0;        // records missing that were not acknowledged, in all
  std::uint64_t torn_bytes = 0;  // ends of writes that never returned, cut
  std::uint64_t disk_bytes = 0;  // of all files
};

struct LabelStats {
  std::string label;
  std::uint64_t records = 0;
  std::uint64_t bytes = 0;
};
struct Stats {
  std::uint64_t records = 0;  // not acknowledged
  std::uint64_t bytes = 0;    // of these, as they lie on the disk
  std::uint64_t disk_bytes = 0;
  std::uint64_t aside_bytes = 0;  // of them, in files kept aside
  std::size_t segments = 0;
  bool unsynced = false;           // something a loss of power may take
  std::vector<LabelStats> labels;  // of what is not acknowledged
};

// The operations of one sandbox and tree that the sandbox has not acknowledged, on this machine's disk.
//
// What append() returned survives kill -9 of this process: it is in the kernel's page cache. What was
// appended before a sync() that succeeded survives the loss of power as well. Somebody calls sync() within
// a second of needs_sync() becoming true, from a thread that may wait for the disk: it also gives space
// back (files without anything unacknowledged are removed there, after the acknowledgements are durable).
//
// Owns:    the directory, by flock(2) on its file `lock`; a second open() is told EBUSY. Processes that are
//          forked and do not exec keep that lock while they live: they close their descriptors.
// Threads: any. append() and acknowledge() write into the page cache under the journal's lock (rank 70),
//          so they come in one order; no lock is held while sync() waits for the disk.
// Errors:  append: kFull; EMSGSIZE over a limit; ENOSPC, EIO … the disk's: nothing of the batch will ever be
//          replayed. acknowledge: the disk's; counts all the same while the process lives, and is written
//          with the next call that succeeds. sync: the disk's, ETIMEDOUT; tried again by the next.
// Bounds:  Options; the limits of record.h. Half a segment of max_bytes is kept back for housekeeping.
// Source:  fsync(2) and what a failed one leaves: linux v6.1 mm/filemap.c (file_check_and_advance_wb_err):
//          an error is told once and the pages count as clean, so the records are written elsewhere again.
class Journal {
 public:
  struct Opened;

  // Makes the directory if it is missing, reads what is there, and puts damaged files aside. An error
  // leaves everything as it is: EBUSY somebody has it; ENOTSUP another format, named in the context.
  static base::Result<Opened> open(const std::string& dir, const Options& options = {});
  // The same without owning or changing anything: for `status` without a mount. Where a daemon owns the
  // journal, a moment's view. A directory that does not exist holds nothing.
  static base::Result<Contents> list(const std::string& dir, Io* io = nullptr);

  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // All of the records or none, in one write. The first one's number; the others' follow densely.
  base::Result<Seq> append(std::span<const Record> records);
  // Their fate is known: they are not replayed. Numbers that are unknown or acknowledged do nothing.
  base::Result<void> acknowledge(std::span<const Seq> seqs);
  // Everything appended and acknowledged before now is on the disk. One at a time; others wait.
  base::Result<void> sync(std::chrono::steady_clock::time_point deadline);
  bool needs_sync() const;  // cheap
  Stats stats() const;
  // Removes the files that were kept aside: their records are gone for good.
  base::Result<void> discard_aside();

 private:
  class Impl;
  explicit Journal(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct Journal::Opened {
  std::unique_ptr<Journal> journal;
  Contents contents;
};

}  // namespace nearbox::journal
