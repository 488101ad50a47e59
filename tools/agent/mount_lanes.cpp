// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/mount_lanes.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>
#include <utility>

#include "tools/agent/mounts.h"
#include "tools/agent/small_file.h"

namespace nearbox::agent {

MountLanes::MountLanes(std::string mountinfo)
    : mountinfo_(std::move(mountinfo)),
      watch_(::open(mountinfo_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)) {}

void MountLanes::refresh_locked() {
  if (!watch_) return;
  struct pollfd changed {
    watch_.get(), POLLPRI, 0
  };
  const bool same = ::poll(&changed, 1, 0) <= 0;
  if (same && loaded_) return;
  const auto text = read_small_file(mountinfo_, kMaxMountInfo);
  if (!text) return;  // what was known will do
  loaded_ = true;
  points_.clear();
  // Later lines lie on top of earlier ones of the same point.
  for (auto& point : mount_points(*text)) points_[std::move(point.path)] = point.dev + 1;
}

std::uint64_t MountLanes::of(std::string_view path) {
  base::MutexLock lock(mu_);
  refresh_locked();
  while (true) {
    while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
    if (const auto it = points_.find(path); it != points_.end()) return it->second;
    const auto slash = path.rfind('/');
    if (slash == std::string_view::npos || path == "/") return 0;
    path = path.substr(0, slash == 0 ? 1 : slash);
  }
}

}  // namespace nearbox::agent
