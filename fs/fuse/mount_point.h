// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/log.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "fs/fuse/mount_session.h"

namespace nearbox::fs {

inline constexpr std::string_view kFsType = "fuse.nearbox";

// One line of /proc/self/mountinfo.
struct MountEntry {
  unsigned major = 0, minor = 0;
  std::string mountpoint, type;
};
// Reads the table without touching any mount.
std::optional<MountEntry> parse_mount_line(std::string_view line);
// The topmost mount at exactly `mountpoint`.
std::optional<MountEntry> find_mount(const std::string& mountpoint);

// One FUSE mount, made with mount(2) as root and with fusermount3 otherwise.
//
// Owns:    the mount while mounted(); the destructor takes it away lazily.
// Threads: one at a time. Every step is bounded by a deadline; nothing opens a path below the mountpoint
//          once it is mounted.
// Errors:  of mount(): kLocalNotFound, kLocalNotDirectory; kMountBusy not empty, or a mount of ours is
//          there; kMountUnavailable FUSE cannot be used. The context says why and what to do.
// Source:  protocol with fusermount3 (_FUSE_COMMFD): libfuse 3.14 lib/mount.c.
class MountPoint {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  static base::Result<std::unique_ptr<MountPoint>> mount(const MountOptions& options, base::Logger& log);
  ~MountPoint();
  MountPoint(const MountPoint&) = delete;
  MountPoint& operator=(const MountPoint&) = delete;

  base::UniqueFd take_fd() { return std::move(fd_); }
  const std::string& path() const { return path_; }
  unsigned minor() const { return minor_; }
  bool mounted() const;
  // Waits until the kernel knows the root's attributes; requests must be served already. A new root has no
  // permission bits, and an answer that an invalidation overtakes is dropped, which let the first user in
  // come to EACCES. Source: Linux 6.18, fs/fuse/inode.c, fuse_get_root_inode, fuse_change_attributes.
  void settle();
  // EBUSY when in use and not lazy.
  base::Result<void> unmount(bool lazy, Deadline deadline);
  // Cuts the connection: all requests fail at once. False: the kernel's control file cannot be written.
  bool abort();
  void forget() { path_.clear(); }  // it is gone: the destructor does nothing

 private:
  MountPoint(std::string path, base::Logger& log) : path_(std::move(path)), log_(log) {}
  std::string path_;
  base::Logger& log_;
  base::UniqueFd fd_;
  unsigned minor_ = 0;
};

// Unmounts whatever is at `path`: as root with umount2, else with fusermount3.
base::Result<void> unmount_path(const std::string& path, bool lazy, MountPoint::Deadline deadline);

}  // namespace nearbox::fs
