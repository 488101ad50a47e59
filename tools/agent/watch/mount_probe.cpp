// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/mount_probe.h"

#include <algorithm>
#include <fcntl.h>
#include <sys/stat.h>

namespace nearbox::agent {

std::vector<std::string> MountProbe::answering(const std::vector<std::string>& points,
                                               Clock::time_point deadline) {
  struct Wait {
    std::shared_ptr<Asked> asked;
    Clock::time_point until;
  };
  std::map<std::string, Wait> waits;
  base::MutexLock lock(mu_);
  for (const auto& point : points) {
    if (const auto it = open_.find(point); it != open_.end()) {
      waits[point] = {it->second, std::min(deadline, it->second->since + kProbeWait)};
      continue;
    }
    if (open_.size() >= kMaxProbes) continue;
    const auto mine = std::make_shared<Asked>();
    mine->since = Clock::now();
    const bool taken = pool_.submit([this, point, mine] {
      struct stat st {};
      (void)::fstatat(AT_FDCWD, point.c_str(), &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
      base::MutexLock held(mu_);
      mine->answered = true;
      open_.erase(point);
      changed_.notify_all();
    });
    if (taken) waits[point] = {open_[point] = mine, deadline};
  }
  std::vector<std::string> out;
  for (const auto& [point, wait] : waits) {
    while (!wait.asked->answered && Clock::now() < wait.until) (void)changed_.wait_until(mu_, wait.until);
    if (wait.asked->answered) out.push_back(point);
  }
  return out;
}

bool MountProbe::stuck() {
  base::MutexLock lock(mu_);
  return !open_.empty();
}

}  // namespace nearbox::agent
