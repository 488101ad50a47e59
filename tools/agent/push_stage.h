// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/push.h"
#include "tools/agent/passwd.h"
#include "tools/agent/roots.h"

namespace nearbox::agent {

inline constexpr std::chrono::hours kStageKept{24};      // a file that is half here, since its last part
inline constexpr std::chrono::minutes kScratchKept{10};  // what an agent that died was making
inline constexpr std::size_t kMaxStageLooks = 4096;      // names of a staging directory that are looked at

// A directory outside of a root and on its mount, in which files become complete before they get their name.
//
// Owns:    the directory's descriptor, locked (flock(2)) against others who would remove it. The directory is
//          removed by the destructor if nothing is left in it and nobody else stages there.
// Threads: any.
class StageDir {
 public:
  StageDir(base::UniqueFd parent, std::string name, base::UniqueFd dir)
      : parent_(std::move(parent)), name_(std::move(name)), dir_(std::move(dir)) {}
  ~StageDir();
  StageDir(const StageDir&) = delete;
  StageDir& operator=(const StageDir&) = delete;

  int fd() const { return dir_.get(); }
  std::string scratch_name();  // one that nobody has
  static std::string stage_name(const wire::Digest& digest);
  std::vector<wire::PushStage> stages() const;
  void clean() const;  // removes what is too old

 private:
  base::UniqueFd parent_;
  std::string name_;
  base::UniqueFd dir_;
  std::atomic<std::uint64_t> next_{0};
};
using StageDirPtr = std::shared_ptr<StageDir>;

// The staging directories of one session's roots: beside the root, in the user's home, or, where neither is
// on the root's mount and writable, `.nearbox` in the root itself.
//
// Threads: any.
// Bounds:  kMaxRoots.
class StageDirs {
 public:
  explicit StageDirs(const Identity& who) : who_(who) {}
  base::Result<StageDirPtr> of(const RootPtr& root) EXCLUDES(mu_);

 private:
  base::Result<StageDirPtr> make(const Root& root) const;

  const Identity& who_;
  base::Mutex mu_;  // rank: leaf; held while a directory is made, once for each root
  std::map<std::string, StageDirPtr> dirs_ GUARDED_BY(mu_);
};

}  // namespace nearbox::agent
