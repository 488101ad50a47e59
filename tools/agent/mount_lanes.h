// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "client/base/mutex.h"
#include "client/base/unique_fd.h"

namespace nearbox::agent {

// Names the file system a path lies on without touching it: one that does not answer must not be asked.
//
// Owns:    the mount points as they were when they last changed, and a descriptor that tells of changes.
// Threads: any.
// Source:  proc_pid_mountinfo(5); poll(2) on it answers POLLPRI after a change: linux v5.15
//          fs/proc_namespace.c, mounts_poll(). Without /proc every path is on one lane.
class MountLanes {
 public:
  explicit MountLanes(std::string mountinfo = "/proc/self/mountinfo");

  // The same number for all paths of one device; 0: not known. `path`: absolute, without links.
  std::uint64_t of(std::string_view path) EXCLUDES(mu_);

 private:
  void refresh_locked() REQUIRES(mu_);

  const std::string mountinfo_;
  base::Mutex mu_;  // rank: leaf; reads mountinfo under it
  base::UniqueFd watch_ GUARDED_BY(mu_);
  bool loaded_ GUARDED_BY(mu_) = false;
  std::map<std::string, std::uint64_t, std::less<>> points_ GUARDED_BY(mu_);
};

}  // namespace nearbox::agent
