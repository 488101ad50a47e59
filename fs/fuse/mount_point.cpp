// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/mount_point.h"

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <sstream>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

#include <climits>

#include "client/api/error_code.h"
#include "fs/fuse/helper.h"

namespace nearbox::fs {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kMountDeadline{15};
constexpr std::chrono::seconds kProbeDeadline{3};  // does a mount that is there already answer?
constexpr std::chrono::seconds kCleanDeadline{5};
constexpr int kMaxRootLooks = 1000;
constexpr const char* kFuseDevice = "/dev/fuse";

// Octal escapes of mountinfo: space, tab, newline, backslash.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escaped = text[i] == '\\' && i + 3 < text.size();
    unsigned value = 0;
    if (escaped &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, value, 8).ptr == text.data() + i + 4) {
      out += static_cast<char>(value);
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

// Whether the mount at `path` answers, asked from a child since the answer may never come.
enum class Probe { kAlive, kDead, kStuck };
Probe probe(const std::string& path) {
  const int status = run_child(
      [&] {
        struct statfs st {};
        return ::statfs(path.c_str(), &st) == 0 || errno != ENOTCONN ? 0 : 1;
      },
      Clock::now() + kProbeDeadline);
  return status == 0 ? Probe::kAlive : status == 1 ? Probe::kDead : Probe::kStuck;
}

base::Result<void> check_directory(const MountOptions& options) {
  const base::UniqueFd fd(::open(options.mountpoint.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    const int error = errno;
    const std::string place = "mountpoint " + options.mountpoint;
    if (error == ENOENT) {
      return api::make_error(api::ErrorCode::kLocalNotFound,
                             place + " does not exist; create the directory first");
    }
    if (error == ENOTDIR) {
      return api::make_error(api::ErrorCode::kLocalNotDirectory,
                             place + " is not a directory; choose another one");
    }
    return base::errno_error(error, place);
  }
  if (options.nonempty) return {};
  base::UniqueFd copy(::dup(fd.get()));
  DIR* const dir = ::fdopendir(copy.get());
  if (dir == nullptr) return base::last_errno("mountpoint " + options.mountpoint);
  (void)copy.release();
  bool empty = true;
  while (const dirent* const entry = ::readdir(dir)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") empty = false;
  }
  ::closedir(dir);
  if (empty) return {};
  return api::make_error(
      api::ErrorCode::kMountBusy,
      "mountpoint " + options.mountpoint +
          " is not empty: the mount would hide its files; choose an empty directory or use "
          "--nonempty");
}

// A mount that is at this place: a dead one of ours is taken away.
base::Result<void> check_present(const std::string& path) {
  const auto present = find_mount(path);
  if (!present || present->type != kFsType) return {};
  if (probe(path) == Probe::kDead) return unmount_path(path, true, Clock::now() + kCleanDeadline);
  return api::make_error(api::ErrorCode::kMountBusy,
                         path + " is a nearbox mount already; unmount it first: nearbox unmount " + path);
}

base::Error no_fuse(int error, const std::string& what) {
  const std::string cause = error == 0 ? "" : " (" + std::generic_category().message(error) + ")";
  return api::make_error(api::ErrorCode::kMountUnavailable, "FUSE is not available: " + what + cause);
}

base::Result<base::UniqueFd> mount_as_root(const std::string& path, const MountOptions& options) {
  base::UniqueFd fd(::open(kFuseDevice, O_RDWR | O_CLOEXEC));
  if (!fd) {
    const int error = errno;
    const bool absent = error == ENOENT || error == ENODEV || error == ENXIO;
    return no_fuse(error, absent
                              ? "/dev/fuse is missing; load the kernel module (modprobe fuse) or start the "
                                "container with --device /dev/fuse"
                              : "/dev/fuse cannot be opened");
  }
  std::ostringstream data;
  data << "fd=" << fd.get() << ",rootmode=40000,user_id=" << ::getuid() << ",group_id=" << ::getgid()
       << ",default_permissions" << (options.allow_other ? ",allow_other" : "");
  unsigned long flags = MS_NOSUID | MS_NODEV;
  if (options.noexec) flags |= MS_NOEXEC;
  if (options.read_only) flags |= MS_RDONLY;
  if (::mount("nearbox", path.c_str(), kFsType.data(), flags, data.str().c_str()) != 0) {
    const int error = errno;
    return no_fuse(error, error == EPERM ? "mounting is not permitted; a container needs --cap-add SYS_ADMIN"
                                         : "mount " + path);
  }
  return fd;
}

// The descriptor that fusermount3 passes over its socket.
base::UniqueFd receive_fd(int socket) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  const cmsghdr* const head = n > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  if (head == nullptr || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
    return base::UniqueFd();
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(head), sizeof(fd));
  return base::UniqueFd(fd);
}

base::Result<base::UniqueFd> mount_as_user(const std::string& path, const MountOptions& options) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return base::last_errno("socketpair");
  base::UniqueFd ours(pair[0]);
  base::UniqueFd theirs(pair[1]);
  std::string opts = "rw,nosuid,nodev,default_permissions,fsname=nearbox,subtype=nearbox";
  if (options.noexec) opts += ",noexec";
  if (options.read_only) opts += ",ro";
  if (options.allow_other) opts += ",allow_other";
  HelperRun run;
  run.argv = {"fusermount3", "-o", opts, "--", path};
  run.env = {"_FUSE_COMMFD=3"};
  run.fd3 = theirs.get();
  auto outcome = run_helper(run, Clock::now() + kMountDeadline);
  theirs.reset();
  if (!outcome) {
    if (outcome.error().as_errno() == ENOENT) {
      return no_fuse(0, "fusermount3 is missing; install the package fuse3");
    }
    return std::move(outcome).error().during("fusermount3");
  }
  auto fd = receive_fd(ours.get());
  if (outcome->status == 0 && fd) return fd;
  if (::access(kFuseDevice, F_OK) != 0) {
    return no_fuse(0, "/dev/fuse is missing; load the kernel module (modprobe fuse)");
  }
  if (::access(kFuseDevice, R_OK | W_OK) != 0) {
    return no_fuse(0, "/dev/fuse is not open to this user; as root: chmod 666 /dev/fuse");
  }
  return no_fuse(0, "fusermount3 refused: " + outcome->text);
}

}  // namespace

std::optional<MountEntry> parse_mount_line(std::string_view line) {
  std::istringstream in{std::string(line)};
  std::string id, parent, device, root, mountpoint, options, word, type;
  if (!(in >> id >> parent >> device >> root >> mountpoint >> options)) return std::nullopt;
  while (in >> word && word != "-") {
  }
  if (!(in >> type)) return std::nullopt;
  MountEntry entry;
  const auto colon = device.find(':');
  if (colon == std::string::npos) return std::nullopt;
  const char* const end = device.data() + device.size();
  if (std::from_chars(device.data(), device.data() + colon, entry.major).ec != std::errc{})
    return std::nullopt;
  if (std::from_chars(device.data() + colon + 1, end, entry.minor).ec != std::errc{}) return std::nullopt;
  entry.mountpoint = unescape(mountpoint);
  entry.type = type;
  return entry;
}

std::optional<MountEntry> find_mount(const std::string& mountpoint) {
  std::ifstream table("/proc/self/mountinfo");
  std::optional<MountEntry> found;
  for (std::string line; std::getline(table, line);) {
    auto entry = parse_mount_line(line);
    if (entry && entry->mountpoint == mountpoint) found = std::move(entry);  // the last one lies on top
  }
  return found;
}

base::Result<std::unique_ptr<MountPoint>> MountPoint::mount(const MountOptions& options, base::Logger& log) {
  std::string path = options.mountpoint;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  if (auto ok = check_present(path); !ok) return std::move(ok).error();
  if (auto ok = check_directory(options); !ok) return std::move(ok).error();
  char resolved[PATH_MAX];
  if (::realpath(path.c_str(), resolved) == nullptr) return base::last_errno("mountpoint " + path);
  path = resolved;
  if (auto ok = check_present(path); !ok) return std::move(ok).error();
  auto fd = ::geteuid() == 0 ? mount_as_root(path, options) : mount_as_user(path, options);
  if (!fd) return std::move(fd).error();
  std::unique_ptr<MountPoint> point(new MountPoint(path, log));
  point->fd_ = std::move(*fd);
  if (const auto entry = find_mount(path)) point->minor_ = entry->minor;
  const int flags = ::fcntl(point->fd_.get(), F_GETFL);
  if (flags < 0 || ::fcntl(point->fd_.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    return base::last_errno("fcntl");
  return point;
}

MountPoint::~MountPoint() {
  if (path_.empty() || !mounted()) return;
  auto done = unmount(true, Clock::now() + kCleanDeadline);
  log_.warn("mount step=drop lazy=1 path=" + path_ + (done.ok() ? "" : " error=" + done.error().message()));
}

bool MountPoint::mounted() const {
  if (path_.empty()) return false;
  const auto entry = find_mount(path_);
  return entry && entry->type == kFsType && entry->minor == minor_;
}

base::Result<void> MountPoint::unmount(bool lazy, Deadline deadline) {
  return unmount_path(path_, lazy, deadline);
}

void MountPoint::settle() {
  const auto mode_of = [this](int flags) -> std::optional<std::uint16_t> {
    struct statx st {};
    if (::statx(AT_FDCWD, path_.c_str(), AT_SYMLINK_NOFOLLOW | flags, STATX_MODE, &st) != 0)
      return std::nullopt;
    return st.stx_mode;
  };
  const auto look = [&mode_of] {
    for (int i = 0; i < kMaxRootLooks; ++i) {
      const auto told = mode_of(0);
      const auto kept = mode_of(AT_STATX_DONT_SYNC);
      if (!told || !kept) return 1;
      if (*told == *kept) return 0;
    }
    return 2;
  };
  const int status = run_child(look, Clock::now() + kProbeDeadline);
  if (status != 0) log_.warn("mount step=settle path=" + path_ + " status=" + std::to_string(status));
}

bool MountPoint::abort() {
  const std::string file = "/sys/fs/fuse/connections/" + std::to_string(minor_) + "/abort";
  const base::UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), "1", 1) == 1;
}

base::Result<void> unmount_path(const std::string& path, bool lazy, MountPoint::Deadline deadline) {
  if (::geteuid() == 0) {
    // In a child: umount(2) may wait for write-out that waits for the agent.
    const int flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0);
    const int error = run_child([&] { return ::umount2(path.c_str(), flags) == 0 ? 0 : errno; }, deadline);
    if (error == 0) return {};
    return base::errno_error(error < 0 ? ETIMEDOUT : error, "unmount " + path);
  }
  HelperRun run;
  run.argv = {"fusermount3", lazy ? "-uz" : "-u", "--", path};
  auto outcome = run_helper(run, deadline);
  if (!outcome) return std::move(outcome).error().during("fusermount3");
  if (outcome->status == 0) return {};
  const bool busy = outcome->text.find("usy") != std::string::npos;
  return base::errno_error(busy ? EBUSY : EPERM, "unmount " + path + ": " + outcome->text);
}

}  // namespace nearbox::fs
