// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "client/base/mutex.h"
#include "client/base/result.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxStartMarks = 4096;
inline constexpr std::time_t kKeepStartMark = 24L * 3600;  // seconds

// Marks on disk which commands were begun, so that a start that is sent again to a new agent process,
// because the old one died before it answered, never runs a command twice.
//
// Owns:    empty files DIR/PROC, one a command, until it is forgotten, a day old, or kMaxStartMarks
//          newer ones are there. The directory is read once; what other agents add to it afterwards
//          is theirs to remove.
// Threads: any.
class StartMarkers {
 public:
  // `dir` is made (0700) when it is missing; "" switches the marks off. `now`: for tests.
  explicit StartMarkers(std::string dir, std::time_t (*now)() = &wall_clock);
  // ESTALE: an agent that is gone had begun to start it. Other errors: the mark could not be made.
  base::Result<void> claim(std::uint64_t proc) EXCLUDES(mu_);
  void drop(std::uint64_t proc) EXCLUDES(mu_);
  std::size_t size() EXCLUDES(mu_);

 private:
  static std::time_t wall_clock() { return std::time(nullptr); }
  void load();
  std::string path(std::uint64_t proc) const;
  void add_locked(std::uint64_t proc, std::time_t since) REQUIRES(mu_);
  void trim_locked() REQUIRES(mu_);

  const std::string dir_;
  std::time_t (*const now_)();
  base::Mutex mu_;  // rank: leaf; held while marks are unlinked, a local directory of our own
  std::map<std::uint64_t, std::time_t> marks_ GUARDED_BY(mu_);
  std::set<std::pair<std::time_t, std::uint64_t>> by_age_ GUARDED_BY(mu_);
};

}  // namespace nearbox::agent
