// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/mount_probe.h"

#include <algorithm>
#include <fcntl.h>
#include <sys/stat.h>

namespace nearbox::agent {

std::vector<std::string> MountProbe::answering(const std::vector<std::string>& points,
                                               Clock::time_point deadline) {
  std::map<std::string, std::shared_ptr<Asked>> asked;
  base::MutexLock lock(mu_);
  for (const auto& point : points) {
    if (const auto it = open_.find(point); it != open_.end()) {
      if (Clock::now() < it->second->since + kProbeWait) asked[point] = it->second;
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
    if (taken) asked[point] = open_[point] = mine;
  }
  const auto answered = [](const auto& one) { return one.second->answered; };
  while (!std::all_of(asked.begin(), asked.end(), answered)) {
    if (!changed_.wait_until(mu_, deadline)) break;
  }
  std::vector<std::string> out;
  for (const auto& [point, one] : asked) {
    if (one->answered) out.push_back(point);
  }
  return out;
}

bool MountProbe::stuck() {
  base::MutexLock lock(mu_);
  return !open_.empty();
}

}  // namespace nearbox::agent
