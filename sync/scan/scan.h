// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"
#include "sync/ignore/rules.h"
#include "sync/index/index.h"

namespace nearbox::scan {

inline constexpr unsigned kMaxHashThreads = 8;
inline constexpr int kReadTries = 3;  // of a file that changes while it is read
inline constexpr std::size_t kMaxReported =
    10'000;  // problems, and paths left out, that are listed; all are counted
inline constexpr std::uint64_t kMaxNodes = index::kMaxEntries;  // one more: EFBIG
inline constexpr std::uint64_t kMinObservedBytes =
    64 * 1024;                           // smaller files are read again until they are pushed
inline constexpr int kMaxLinkHops = 40;  // as the kernel has it; more is a loop

enum class ChangeKind : std::uint8_t {
  kAdded,
  kModified,  // content, target or type
  kMode,      // permission bits alone
  kDeleted,
  kLeftOut,  // still or no longer there, but a rule takes it now: nothing to be deleted on the other side
};

// One path that is not as the baseline has it.
struct Change {
  ChangeKind kind = ChangeKind::kAdded;
  std::string path;
  index::Entry now;     // of kDeleted and kLeftOut: as before
  index::Entry before;  // of kAdded: nothing
  std::string target;   // of a symlink
};

enum class ProblemKind : std::uint8_t {
  kUnreadable,      // a file or directory; what the baseline has of it stays
  kChanging,        // changed each time it was read
  kUnstable,        // became something else between two looks
  kSpecial,         // socket, pipe or device
  kOtherMount,      // another file system is mounted there
  kPathTooLong,     // longer than index::kMaxPathBytes
  kTooLarge,        // above ScanOptions::max_file_bytes
  kRules,           // a rule file; `path` holds the words
  kSymlinkSkipped,  // ScanOptions::symlinks
  kNameNotUtf8,     // a note: it is synced all the same
  kSymlinkLoop,     // a note, likewise
};
std::string_view name_of(ProblemKind kind);
// Notes name what is odd and synced all the same.
constexpr bool is_note(ProblemKind kind) {
  return kind == ProblemKind::kNameNotUtf8 || kind == ProblemKind::kSymlinkLoop;
}

struct Problem {
  ProblemKind kind;
  std::string path;
  int error = 0;  // errno, where there is one
};

// A path that rules keep from the sandbox; of a directory that was not looked into, it alone.
struct LeftOut {
  std::string path;
  bool directory = false;
  ignore::RuleKind kind = ignore::RuleKind::kNone;
};

struct ScanCounts {
  std::uint64_t files = 0;  // that are synced
  std::uint64_t directories = 0;
  std::uint64_t symlinks = 0;
  std::uint64_t bytes = 0;
  std::uint64_t hashed_files = 0;  // whose content was read
  std::uint64_t hashed_bytes = 0;
  std::uint64_t problems = 0;
  std::uint64_t left_out = 0;
};

enum class Symlinks : std::uint8_t { kPreserve, kSkip };
enum class Compare : std::uint8_t { kAuto, kContent };  // kContent: every file is read

struct ScanOptions {
  unsigned hash_threads = 0;         // 0: as many as there are processors
  std::uint64_t max_file_bytes = 0;  // 0: no limit
  Symlinks symlinks = Symlinks::kPreserve;
  Compare compare = Compare::kAuto;
  // How coarse the file system's time stamps are taken to be. 0: as the kernel's clock, or a second where
  // stamps show whole ones. Stamps are rounded down to it.
  std::int64_t granularity_ns = 0;
  // Not empty: these paths, with all below them, and the directories they lie in are looked at, nothing else.
  // Where the directory of one is no longer there, it is looked at instead.
  std::vector<std::string> only;
  // Counted while the scan runs, for progress. May be null.
  std::atomic<std::uint64_t>* hashed_bytes = nullptr;
};

struct ScanResult {
  std::vector<Change> changes;  // by path
  std::vector<Problem> problems;
  std::vector<LeftOut> left_out;
  ScanCounts counts;
  // What was learnt of unchanged files: new stamps of equal content, digests of files not pushed yet. Apply
  // it to the index, so that the next scan reads less.
  index::Batch learnt;
};

// Looks at everything below the rules' root and says what differs from the index.
//
// It walks relative to the root's descriptor, through no symlink and onto no other mount. A file whose stat
// is that of the index is not read; what was read too soon after its last change (the racy rule) is read
// again. What cannot be read is a problem with a name; the rest goes on, and nothing below it counts as
// deleted.
//
// Threads: starts and joins its own (docs/threads.md). The index is used by one of them at a time.
// Errors:  the root cannot be opened or listed; ECANCELED; EFBIG more than kMaxNodes paths; errors of the
// index.
base::Result<ScanResult> scan(const std::shared_ptr<const ignore::Rules>& rules, const index::Index& baseline,
                              const ScanOptions& options, std::stop_token stop);

}  // namespace nearbox::scan
