// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <fcntl.h>
#include <functional>
#include <sys/stat.h>
#include <unordered_map>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/wire/messages.h"

// stat(2) with the time of birth, by which a file is told from a later one with its inode number.
//
// Source:  statx(2): stx_btime counts when stx_mask has STATX_BTIME.
namespace nearbox::agent {

struct Stat : ::stat {
  std::uint32_t birth = 0;     // wire::Attr::birth
  std::int64_t looked_ns = 0;  // by the clock of file times, before the call; 0: not known
};

// Of `name` in `dir` ("" is the directory itself), not through a symlink.
base::Result<Stat> stat_at(int dir, const char* name);
base::Result<Stat> stat_fd(int fd);

inline wire::NodeId node_of(const Stat& st) {
  return {static_cast<std::uint64_t>(st.st_dev), static_cast<std::uint64_t>(st.st_ino), st.birth};
}
// The number alone, for what watches: it knows directories by their handles.
inline wire::NodeId node_of(const struct stat& st) {
  return {static_cast<std::uint64_t>(st.st_dev), static_cast<std::uint64_t>(st.st_ino)};
}

// By statfs f_type: a file keeps its time of birth as long as its number. An overlay takes that of the
// copy when a file is first written, and what a process serves may do the same.
bool births_hold(std::uint64_t f_type);

// On which devices births hold, asked once of each.
//
// Threads: any.
// Bounds:  kMaxBirthDevices; then all are asked for again. A device without a block device behind it may
//          become another file system when its number is given again: asked for again after kBirthsRecheck.
inline constexpr std::size_t kMaxBirthDevices = 256;
inline constexpr std::chrono::milliseconds kBirthsRecheck{1000};
class BirthDevices {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  // The statfs f_type of a device's file system; 0: it could not be found out, nothing is remembered.
  using Ask = std::function<std::uint64_t()>;
  bool holds(std::uint64_t dev, TimePoint now, const Ask& ask) EXCLUDES(mu_);

 private:
  struct Known {
    bool holds = false;
    TimePoint asked;
  };
  base::Mutex mu_;  // rank: leaf
  std::unordered_map<std::uint64_t, Known> known_ GUARDED_BY(mu_);
};

}  // namespace nearbox::agent
