// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/mounts.h"

#include <algorithm>

#include "client/api/error_code.h"
#include "fs/fuse/mount_point.h"
#include "tools/daemon/client.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kHelloDeadline = 5s;

bool ours(const std::string& mountpoint) {
  const auto entry = fs::find_mount(mountpoint);
  return entry && entry->type == fs::kFsType;
}

// A daemon of ours that still runs and serves this place.
bool served(const std::string& mountpoint) {
  auto layouts = all_layouts();
  if (!layouts) return true;
  for (const auto& layout : *layouts) {
    for (const auto& mount : recorded_mounts(layout)) {
      if (mount.mountpoint == mountpoint && connect_unix(layout.socket())) return true;
    }
  }
  return false;
}

}  // namespace

base::Result<void> unmount_anywhere(const std::string& mountpoint, Clock::time_point deadline) {
  auto layouts = all_layouts();
  if (!layouts) return std::move(layouts).error();
  for (const auto& layout : *layouts) {
    const auto recorded = recorded_mounts(layout);
    if (std::none_of(recorded.begin(), recorded.end(),
                     [&](const RecordedMount& mount) { return mount.mountpoint == mountpoint; })) {
      continue;
    }
    auto connection = connect_daemon(layout, std::min(deadline, Clock::now() + kHelloDeadline));
    if (!connection) continue;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    auto answer = request(**connection, {{"op", "unmount"}, {"mountpoint", mountpoint}, {"timeout_ms", left}},
                          deadline + 1s);
    if (!answer) return std::move(answer).error();
    if (answer->value("unmounted", false)) return {};
  }
  if (ours(mountpoint) && served(mountpoint)) {
    return api::make_error(api::ErrorCode::kMountBusy, mountpoint +
                                                           " is served by a daemon that does not answer; "
                                                           "see nearbox status, or end it");
  }
  if (ours(mountpoint)) {
    // Its daemon is gone: nothing more can be lost there.
    return fs::unmount_path(mountpoint, true, deadline);
  }
  return api::make_error(api::ErrorCode::kArgInvalid, "MOUNTPOINT is not valid: " + mountpoint +
                                                          " is not mounted by nearbox; see nearbox status");
}

void clear_dead_mounts(const Layout& layout) {
  for (const auto& mount : recorded_mounts(layout)) {
    // The caller holds the lock, so the daemon that made it is gone and so is its end of the mount. What
    // lies there now may be another daemon's: its device is another one.
    const auto entry = fs::find_mount(mount.mountpoint);
    if (!entry || entry->type != fs::kFsType || entry->minor != mount.minor) continue;
    (void)fs::unmount_path(mount.mountpoint, true, Clock::now() + 5s);
  }
  (void)record_mounts(layout, {});
}

}  // namespace nearbox::daemon
