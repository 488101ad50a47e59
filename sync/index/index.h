// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"

namespace nearbox::index {

// XXH3-128 of a file's bytes or a symlink's target, in canonical (big-endian) form.
using Digest = std::array<unsigned char, 16>;

enum class Type : std::uint8_t { kFile = 1, kDirectory = 2, kSymlink = 3 };

// What stat(2) says of a file: as long as none of it changes, its content is taken to be the same (racy()
// excepted).
struct StatInfo {
  Type type = Type::kFile;
  std::uint32_t mode = 0;  // permission bits, set-id and sticky bits included
  std::uint64_t size = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
  std::uint64_t inode = 0;
  std::uint64_t device = 0;
  bool operator==(const StatInfo&) const = default;
};

// One path of the baseline: the last state on which both sides agreed.
struct Entry {
  StatInfo stat;  // of the local side, when it had this content
  Digest digest{};
  std::uint64_t remote_version = 0;  // the agent's change counter; 0: not known
  // The content was read so soon after the last change that another one could have left the stamps alone: it
  // is read again next time.
  bool racy = false;
  bool operator==(const Entry&) const = default;
};

// What was read of a file that differs from the baseline, so that it is not read again at each scan until it
// is pushed.
struct Observed {
  StatInfo stat;
  Digest digest{};
  bool operator==(const Observed&) const = default;
};

// Which two directories belong together. The names are free of meaning here.
struct Pairing {
  std::string local_root;
  std::string remote;  // sandbox and directory
};

inline constexpr std::size_t kMaxPathBytes = 4095;  // PATH_MAX with its NUL
inline constexpr std::uint64_t kMaxEntries =
    16'000'000;  // of one pairing; the next one is refused with EFBIG

// Changes that are made together or not at all.
class Batch {
 public:
  void put(std::string_view path, const Entry& entry) { puts_.push_back({std::string(path), entry}); }
  void remove(std::string_view path) { removes_.emplace_back(path); }
  void observe(std::string_view path, const Observed& seen) {
    observes_.push_back({std::string(path), seen});
  }
  void forget(std::string_view path) { forgets_.emplace_back(path); }  // what was observed
  bool empty() const { return puts_.empty() && removes_.empty() && observes_.empty() && forgets_.empty(); }
  std::size_t size() const { return puts_.size() + removes_.size() + observes_.size() + forgets_.size(); }

 private:
  friend class Index;
  std::vector<std::pair<std::string, Entry>> puts_;
  std::vector<std::string> removes_;
  std::vector<std::pair<std::string, Observed>> observes_;
  std::vector<std::string> forgets_;
};

// The baseline of one pairing, on disk.
//
// Owns:    the database (SQLite, write-ahead log) and its connection.
// Threads: one at a time.
// Units:   paths are bytes, relative to the root; times are nanoseconds since 1970.
// Errors:  ENOSPC, EIO, EACCES …; EBUSY another process writes for longer than kBusyWait; EUCLEAN the file is
// damaged
//          or no index; ESTALE it belongs to another pairing or to a newer nearbox. A failed call changes
//          nothing.
// Source:  a transaction survives the end of the process at any time: sqlite.org/wal.html,
// synchronous=NORMAL; the loss
//          of power may undo the last ones, which costs a comparison by content.
class Index {
 public:
  // Opens the file at `path`, made when it is missing, for `pairing`.
  static base::Result<std::unique_ptr<Index>> open(const std::string& path, const Pairing& pairing);
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;

  base::Result<void> apply(const Batch& batch);
  // All entries, in the order of their paths' bytes, as of one moment.
  base::Result<void> each(const std::function<void(std::string_view path, const Entry&)>& take) const;
  base::Result<void> each_observed(
      const std::function<void(std::string_view path, const Observed&)>& take) const;
  // The entry at `path`, then those below it.
  base::Result<void> each_at(std::string_view path,
                             const std::function<void(std::string_view path, const Entry&)>& take) const;
  base::Result<std::optional<Entry>> find(std::string_view path) const;
  base::Result<std::uint64_t> size() const;

  // Small values of callers, such as the last sequence: they travel with no batch.
  base::Result<std::string> get(const std::string& key) const;  // "" when there is none
  base::Result<void> set(const std::string& key, const std::string& value);

  // Forgets all entries: the sandbox the baseline was agreed with is gone.
  base::Result<void> clear();
  // Reads the whole file and compares it with itself. For tests and `doctor`.
  base::Result<void> check() const;

 private:
  class Impl;
  explicit Index(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nearbox::index
