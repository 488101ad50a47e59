// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/fs_path.h"

#include <algorithm>
#include <atomic>
#include <ctime>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "client/wire/paths.h"
#include "tools/agent/versions.h"

namespace nearbox::agent {
namespace {

constexpr int kMaxAgain = 64;  // retries of an openat2 that met a rename
std::atomic<bool> no_openat2{false};

std::int64_t nanoseconds(const struct timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; }

// The answer of openat2, -ENOSYS where there is none (also where seccomp refuses it with EPERM:
// Docker before 20.10 does).
int try_openat2(int root, const char* path, int flags) {
  if (no_openat2.load(std::memory_order_relaxed) || base::fault::active("agent.no_openat2")) return -ENOSYS;
  struct open_how how {};
  // With O_NOFOLLOW a directory that is a symlink would be ENOTDIR; without it RESOLVE_NO_SYMLINKS says
  // ELOOP.
  how.flags = static_cast<std::uint64_t>((flags & O_DIRECTORY) != 0 ? flags & ~O_NOFOLLOW : flags);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  for (int i = 0; i < kMaxAgain; ++i) {
    const long fd = ::syscall(SYS_openat2, root, path, &how, sizeof how);
    if (fd >= 0) return static_cast<int>(fd);
    if (errno == ENOSYS) no_openat2.store(true, std::memory_order_relaxed);
    if (errno == EPERM && (flags & O_PATH) != 0) return -ENOSYS;  // O_PATH opens are never EPERM
    if (errno != EAGAIN && errno != EINTR) return -errno;
  }
  return -EAGAIN;
}

// ENOTDIR of a walk over a symlink means ELOOP, as openat2 says.
int walk_error(int dir, const std::string& name, int error) {
  struct stat st {};
  if (error == ENOTDIR && ::fstatat(dir, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      S_ISLNK(st.st_mode)) {
    return ELOOP;
  }
  return error;
}

// Component by component with O_NOFOLLOW; valid_path() has refused "..".
base::Result<base::UniqueFd> walk(int root, std::string_view path, int flags) {
  base::UniqueFd dir(::openat(root, ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!dir) return base::last_errno("open");
  while (true) {
    const auto slash = path.find('/');
    const std::string name(path.substr(0, slash));
    const bool last = slash == std::string_view::npos;
    const int how = last ? flags : O_PATH | O_DIRECTORY | O_CLOEXEC;
    base::UniqueFd next(::openat(dir.get(), name.c_str(), how | O_NOFOLLOW));
    if (!next) return base::errno_error(walk_error(dir.get(), name, errno), "open");
    if (last) return next;
    dir = std::move(next);
    path.remove_prefix(slash + 1);
  }
}

int type_error(mode_t mode) {
  if (S_ISDIR(mode)) return EISDIR;
  if (S_ISLNK(mode)) return ELOOP;
  return ENXIO;
}

}  // namespace

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

// Tests run with clocks of files that step as coarsely as those of other kernels and file systems.
std::int64_t coarse_step() {
  if (base::fault::active("agent.coarse_times", "4ms")) return 4'000'000;
  if (base::fault::active("agent.coarse_times", "1s")) return kSecond;
  return 1;
}

std::int64_t as_coarse(std::int64_t ns) { return ns - ns % coarse_step(); }

// How far two changes can lie apart that leave a file the same time.
std::int64_t tick_of(std::int64_t ctime_ns) {
  static const std::int64_t kernel_tick = [] {
    struct timespec tick {};
    const bool known = ::clock_getres(CLOCK_REALTIME_COARSE, &tick) == 0 && tick.tv_sec == 0;
    return known ? std::int64_t{tick.tv_nsec} : 10'000'000;
  }();
  // Some file systems keep whole seconds.
  const auto whole = ctime_ns % kSecond == 0 ? kSecond : 1;
  return std::max({kernel_tick, coarse_step(), whole});
}

// The next change may leave all that a look shows as it is. Two ticks: the clock of file times steps behind
// the one that is asked.
bool racy(const Stat& st) {
  if (!S_ISREG(st.st_mode) || base::fault::active("agent.no_racy_rule")) return false;
  const auto changed = as_coarse(nanoseconds(st.st_ctim));
  return changed >= st.looked_ns - 2 * tick_of(changed);
}

}  // namespace

wire::Attr make_attr(const Stat& st) { return make_attr(st, Versions::process().now()); }

wire::Attr make_attr_before(const Stat& st) {
  auto attr = make_attr(st);
  attr.version = Versions::process().of(node_of(st));
  return attr;
}

wire::Attr make_attr(const Stat& st, std::uint64_t as_of) {
  wire::Attr attr;
  attr.ino = st.st_ino;
  attr.dev = st.st_dev;
  attr.mode = st.st_mode;
  attr.nlink = static_cast<std::uint32_t>(st.st_nlink);
  attr.uid = st.st_uid;
  attr.gid = st.st_gid;
  attr.rdev = st.st_rdev;
  attr.size = static_cast<std::uint64_t>(st.st_size);
  attr.blocks = static_cast<std::uint64_t>(st.st_blocks);
  attr.mtime_ns = as_coarse(nanoseconds(st.st_mtim));
  attr.ctime_ns = as_coarse(nanoseconds(st.st_ctim));
  attr.birth = st.birth;
  auto& versions = Versions::process();
  attr.version = versions.of(node_of(st), as_of);
  // Nobody counts there: what size and times cannot tell yet is something else each time it is looked at.
  if (attr.version == 0 && racy(st)) attr.version = versions.unique();
  return attr;
}

base::Result<base::UniqueFd> open_beneath(int root, std::string_view path, int flags) {
  if (!wire::valid_path(path)) return base::errno_error(EINVAL, "path");
  flags |= O_CLOEXEC | O_NOFOLLOW;
  if ((flags & O_PATH) == 0) flags |= O_NONBLOCK | O_NOCTTY;
  if (path.empty()) {
    base::UniqueFd fd(::openat(root, ".", flags));
    if (!fd) return base::last_errno("open");
    return fd;
  }
  const int got = try_openat2(root, std::string(path).c_str(), flags);
  if (got >= 0) return base::UniqueFd(got);
  if (got == -ENOSYS) return walk(root, path, flags);
  return base::errno_error(-got, "open");
}

base::Result<Place> open_place(int root, std::string_view path) {
  if (!wire::valid_path(path)) return base::errno_error(EINVAL, "path");
  const auto slash = path.rfind('/');
  const auto dir = slash == std::string_view::npos ? std::string_view{} : path.substr(0, slash);
  auto fd = open_beneath(root, dir, O_PATH | O_DIRECTORY);
  if (!fd) return std::move(fd).error();
  std::string name(slash == std::string_view::npos ? path : path.substr(slash + 1));
  return Place{std::move(*fd), path.empty() ? "." : std::move(name)};
}

base::Result<Stat> stat_place(const Place& place, wire::NodeId expect) {
  auto st = stat_at(place.dir.get(), place.name.c_str());
  if (!st) return st;
  if (expect != wire::NodeId{} && !wire::same_node(expect, node_of(*st)))
    return base::errno_error(ESTALE, "stat");
  return st;
}

base::Result<OpenFile> open_regular(const Place& place, wire::NodeId expect, int flags) {
  auto before = stat_place(place, expect);
  if (!before) return std::move(before).error();
  if (!S_ISREG(before->st_mode)) return base::errno_error(type_error(before->st_mode), "open");
  OpenFile file;
  file.fd.reset(
      ::openat(place.dir.get(), place.name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file.fd) return base::last_errno("open");
  auto opened = stat_fd(file.fd.get());
  if (!opened) return std::move(opened).error();
  file.st = *opened;
  if (!wire::same_node(node_of(file.st), node_of(*before))) {  // replaced in between
    if (expect != wire::NodeId{}) return base::errno_error(ESTALE, "open");
    if (!S_ISREG(file.st.st_mode)) return base::errno_error(type_error(file.st.st_mode), "open");
  }
  return file;
}

base::Result<OpenFile> open_for_write(const Place& place, wire::NodeId expect, int flags) {
  auto file = open_regular(place, expect, flags);
  if (file || file.error().as_errno() != EACCES) return file;
  auto st = stat_place(place, expect);
  if (!st || st->st_uid != ::geteuid() || (st->st_mode & 0600) == 0600) return file;
  const auto mode = st->st_mode & 07777;
  if (::fchmodat(place.dir.get(), place.name.c_str(), mode | 0600, AT_SYMLINK_NOFOLLOW) != 0) return file;
  file = open_regular(place, node_of(*st), flags);
  if (file) {
    (void)::fchmod(file->fd.get(), mode);
    if (auto now = stat_fd(file->fd.get())) file->st = *now;
  } else {
    (void)::fchmodat(place.dir.get(), place.name.c_str(), mode, AT_SYMLINK_NOFOLLOW);
  }
  return file;
}

}  // namespace nearbox::agent
