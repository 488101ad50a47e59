// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/mounts.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <linux/magic.h>
#include <sys/sysmacros.h>

#include "client/base/fault.h"
#include "tools/agent/small_file.h"

namespace nearbox::agent {
namespace {

std::string_view take_field(std::string_view& rest) {
  const auto at = rest.find(' ');
  const auto field = rest.substr(0, at);
  rest = at == std::string_view::npos ? std::string_view{} : rest.substr(at + 1);
  return field;
}

// "\040" and its like.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, value, 8).ptr == text.data() + i + 4) {
      out.push_back(static_cast<char>(value));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

bool parse_device(std::string_view text, std::uint64_t& out) {
  unsigned major_number = 0;
  unsigned minor_number = 0;
  const auto colon = text.find(':');
  if (colon == std::string_view::npos) return false;
  const auto a = std::from_chars(text.data(), text.data() + colon, major_number);
  const auto b = std::from_chars(text.data() + colon + 1, text.data() + text.size(), minor_number);
  out = makedev(major_number, minor_number);
  return a.ec == std::errc{} && b.ec == std::errc{};
}

constexpr std::array kPseudoTypes = {
    std::string_view("proc"),       std::string_view("sysfs"),     std::string_view("devtmpfs"),
    std::string_view("devpts"),     std::string_view("cgroup"),    std::string_view("cgroup2"),
    std::string_view("tracefs"),    std::string_view("debugfs"),   std::string_view("securityfs"),
    std::string_view("configfs"),   std::string_view("bpf"),       std::string_view("pstore"),
    std::string_view("efivarfs"),   std::string_view("mqueue"),    std::string_view("binfmt_misc"),
    std::string_view("fusectl"),    std::string_view("selinuxfs"), std::string_view("autofs"),
    std::string_view("rpc_pipefs"), std::string_view("nsfs"),      std::string_view("hugetlbfs"),
    std::string_view("resctrl"),    std::string_view("smackfs"),   std::string_view("nfsd")};

// What is changed elsewhere, by other machines or the host. A process serves what begins with "fuse", and
// what it shows may be a network's; the two left out show local disks only.
bool foreign_type(std::string_view type) {
  constexpr std::array kTypes = {
      std::string_view("nfs"),    std::string_view("nfs4"),   std::string_view("cifs"),
      std::string_view("smb3"),   std::string_view("smbfs"),  std::string_view("9p"),
      std::string_view("ceph"),   std::string_view("afs"),    std::string_view("coda"),
      std::string_view("lustre"), std::string_view("gfs2"),   std::string_view("ocfs2"),
      std::string_view("gpfs"),   std::string_view("beegfs"), std::string_view("orangefs"),
      std::string_view("vboxsf"), std::string_view("prl_fs"), std::string_view("virtiofs")};
  if (type == "fuse" || type.rfind("fuse.", 0) == 0) return type != "fuse.fuse-overlayfs";
  return std::find(kTypes.begin(), kTypes.end(), type) != kTypes.end();
}

}  // namespace

std::vector<MountPoint> mount_points(std::string_view mountinfo) {
  std::vector<MountPoint> all;
  while (!mountinfo.empty()) {
    auto line = mountinfo.substr(0, mountinfo.find('\n'));
    mountinfo.remove_prefix(std::min(mountinfo.size(), line.size() + 1));
    const auto id = take_field(line);
    take_field(line);
    const auto device = take_field(line);
    const auto root = take_field(line);
    const auto path = take_field(line);
    const auto dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    line.remove_prefix(dash + 3);
    MountPoint point;
    point.path = unescape(path);
    point.root = unescape(root);
    (void)std::from_chars(id.data(), id.data() + id.size(), point.id);
    point.type = take_field(line);
    point.source = take_field(line);
    if (parse_device(device, point.dev)) all.push_back(std::move(point));
  }
  return all;
}

MountTable MountTable::parse(std::string_view mountinfo) {
  MountTable table;
  for (const auto& point : mount_points(mountinfo)) {
    const auto& type = point.type;
    const bool in_dev = point.path == "/dev" && (type == "tmpfs" || type == "ramfs");
    table.pseudo_[point.dev] |=
        in_dev || std::find(kPseudoTypes.begin(), kPseudoTypes.end(), type) != kPseudoTypes.end();
    const bool fuse = type.rfind("fuse", 0) == 0 && type != "fusectl";
    const bool ours =
        type.find("nearbox") != std::string::npos || point.source.find("nearbox") != std::string::npos;
    if (fuse && ours) {
      table.own_[point.path] = type;
      continue;
    }
    const bool foreign = foreign_type(type) || base::fault::active("agent.foreign_mount", point.path);
    table.points_[point.path] = {point.path, point.dev, point.id, point.root, point.path != "/" && foreign,
                                 type};
  }
  for (auto& [path, mounted] : table.points_) {  // those above come first
    mounted.foreign = mounted.foreign || table.foreign(std::string_view(path).substr(0, path.rfind('/')));
    if (mounted.foreign) table.foreign_devices_.insert(mounted.dev);
  }
  return table;
}

MountTable MountTable::load() {
  const auto text = read_small_file("/proc/self/mountinfo", kMaxMountInfo);
  return text ? parse(*text) : MountTable{};
}

bool MountTable::pseudo_device(std::uint64_t dev) const {
  const auto it = pseudo_.find(dev);
  return it != pseudo_.end() && it->second;
}

std::vector<Mounted> MountTable::below(const std::string& directory) const {
  const std::string start = directory == "/" ? directory : directory + "/";
  std::vector<Mounted> found;
  for (auto it = points_.lower_bound(start); it != points_.end() && it->first.rfind(start, 0) == 0; ++it) {
    if (it->first.size() > start.size() && !pseudo_device(it->second.dev)) found.push_back(it->second);
  }
  return found;
}

std::vector<wire::MountBelow> MountTable::told_below(const std::string& directory) const {
  const std::string start = directory == "/" ? directory : directory + "/";
  std::vector<wire::MountBelow> found;
  for (auto it = points_.lower_bound(start); it != points_.end() && it->first.rfind(start, 0) == 0; ++it) {
    if (it->first.size() == start.size()) continue;
    const auto how = pseudo_device(it->second.dev) ? wire::MountHow::kEmpty
                     : it->second.foreign          ? wire::MountHow::kForeign
                                                   : wire::MountHow::kWatched;
    found.push_back({it->first, it->second.type, how});
  }
  for (auto it = own_.lower_bound(start); it != own_.end() && it->first.rfind(start, 0) == 0; ++it) {
    found.push_back({it->first, it->second, wire::MountHow::kEmpty});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return found;
}

std::uint64_t MountTable::device_at(std::string_view mountpoint) const {
  const auto it = points_.find(mountpoint);
  return it == points_.end() ? 0 : it->second.dev;
}

bool MountTable::foreign(std::string_view path) const {
  if (path.empty()) path = "/";
  while (true) {
    if (const auto it = points_.find(path); it != points_.end()) return it->second.foreign;
    const auto slash = path.rfind('/');
    if (slash == std::string_view::npos || path == "/") return false;
    path = path.substr(0, slash == 0 ? 1 : slash);
  }
}

bool pseudo_magic(std::uint64_t f_type) {
  constexpr std::array<std::uint64_t, 18> kMagics = {
      PROC_SUPER_MAGIC,   SYSFS_MAGIC,   DEVPTS_SUPER_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC,
      TRACEFS_MAGIC,      DEBUGFS_MAGIC, SECURITYFS_MAGIC,   BPF_FS_MAGIC,       PSTOREFS_MAGIC,
      EFIVARFS_MAGIC,     0x19800202,    0x62656570,         BINFMTFS_MAGIC,     SELINUX_MAGIC,
      AUTOFS_SUPER_MAGIC, NSFS_MAGIC,    0x65735543};
  return std::find(kMagics.begin(), kMagics.end(), f_type) != kMagics.end();
}

}  // namespace nearbox::agent
