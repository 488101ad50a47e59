// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/messages.h"
#include "tools/agent/passwd.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxRoots = 256;  // of one session

// A directory that a client works below.
struct Root {
  base::UniqueFd dir;  // O_PATH
  std::string path;    // canonical, absolute
  wire::NodeId node;
};
using RootPtr = std::shared_ptr<const Root>;

// The roots of one session; numbers are 1, 2, … and the same directory has one number.
//
// Threads: any; open() does file system calls outside the lock.
class RootTable {
 public:
  explicit RootTable(const Identity& who) : who_(who) {}

  // Errors:  EINVAL: NUL or too long; EMFILE: kMaxRoots; else of open(2) and mkdir(2).
  // `made`: the first directory that had to be made, absolute; left alone when there was none.
  base::Result<wire::RootReply> open(const wire::RootOpen& request, std::string* made = nullptr)
      EXCLUDES(mu_);
  // ESTALE: no such number.
  base::Result<RootPtr> get(std::uint32_t number) EXCLUDES(mu_);
  // Whether changes below this path (absolute) are counted from now on: what watching it came to.
  void set_counted(const std::string& path, bool counted) EXCLUDES(mu_);
  // For Uncounted: the next directory above that was asked to be watched is not.
  bool uncounted(std::string_view absolute) EXCLUDES(mu_);
  bool uncounted(std::uint32_t number, std::string_view path) EXCLUDES(mu_);

 private:
  base::Result<void> make_directories(const std::string& path, std::string* made) const;

  const Identity& who_;
  base::Mutex mu_;  // rank: leaf
  std::vector<RootPtr> roots_ GUARDED_BY(mu_);
  std::map<std::string, bool, std::less<>> counted_ GUARDED_BY(mu_);  // of roots only
  std::atomic<bool> any_uncounted_{false};
};

}  // namespace nearbox::agent
