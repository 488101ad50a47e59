// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "client/wire/changes.h"
#include "client/wire/messages.h"

namespace nearbox::agent {

// What is mounted at a place.
struct Mounted {
  std::string path;
  std::uint64_t dev = 0;
  std::uint64_t id = 0;  // used again by the kernel
  std::string root;      // the directory of the file system that shows there
  bool foreign = false;  // MountTable::foreign()
  std::string type = {};
  auto operator<=>(const Mounted&) const = default;
};

// What is mounted where, as far as a walk must know it: which devices are pseudo file systems, and
// where our own FUSE mounts are, which must not even be stat'ed.
//
// Source:  proc_pid_mountinfo(5); without /proc everything counts as ordinary.
class MountTable {
 public:
  // Parses the text of /proc/self/mountinfo.
  static MountTable parse(std::string_view mountinfo);
  static MountTable load();

  bool pseudo_device(std::uint64_t dev) const;
  bool own_mount(const std::string& absolute_path) const { return own_.count(absolute_path) != 0; }
  bool knows(std::uint64_t dev) const { return pseudo_.count(dev) != 0; }
  bool any_own() const { return !own_.empty(); }
  // What is mounted below a directory, holds files and is not ours; by path.
  std::vector<Mounted> below(const std::string& directory) const;
  // All that is mounted below it, by path, for kMounts.
  std::vector<wire::MountBelow> told_below(const std::string& directory) const;
  std::uint64_t device_at(std::string_view mountpoint) const;  // 0: nothing is mounted there
  // Whether this lies on a file system that others change without a word to this kernel, or that may not
  // answer: of the network, of the host, of a process. Not so the one mounted at "/": it is the sandbox's.
  bool foreign(std::string_view absolute_path) const;
  bool any_foreign() const { return !foreign_devices_.empty(); }
  const std::set<std::uint64_t>& foreign_devices() const { return foreign_devices_; }

 private:
  std::unordered_map<std::uint64_t, bool> pseudo_;
  std::map<std::string, std::string> own_;              // with their types
  std::map<std::string, Mounted, std::less<>> points_;  // what is mounted there last
  std::set<std::uint64_t> foreign_devices_;
};

inline constexpr std::size_t kMaxMountInfo = 16 * 1024 * 1024;

struct MountPoint {
  std::string path;
  std::string type;
  std::string source;
  std::uint64_t dev = 0;
  std::uint64_t id = 0;
  std::string root;
};
// The lines of /proc/self/mountinfo, in order; malformed ones are left out.
std::vector<MountPoint> mount_points(std::string_view mountinfo);

// By statfs f_type: file systems that show the kernel's state, not files.
bool pseudo_magic(std::uint64_t f_type);

}  // namespace nearbox::agent
