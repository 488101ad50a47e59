// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/node_stat.h"

#include <atomic>
#include <cerrno>
#include <ctime>
#include <linux/magic.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "client/base/unique_fd.h"

namespace nearbox::agent {
namespace {

constexpr std::uint64_t kAufsMagic = 0x61756673;  // "aufs"; not in linux/magic.h
constexpr std::uint64_t kFuseMagic = 0x65735546;  // linux v6.1 fs/fuse/inode.c (FUSE_SUPER_MAGIC)
std::atomic<bool> no_statx{false};

struct timespec time_of(const struct statx_timestamp& t) {
  struct timespec out {};
  out.tv_sec = t.tv_sec;
  out.tv_nsec = static_cast<long>(t.tv_nsec);
  return out;
}

Stat stat_of(const struct statx& x) {
  Stat st;
  st.st_dev = makedev(x.stx_dev_major, x.stx_dev_minor);
  st.st_ino = x.stx_ino;
  st.st_mode = x.stx_mode;
  st.st_nlink = x.stx_nlink;
  st.st_uid = x.stx_uid;
  st.st_gid = x.stx_gid;
  st.st_rdev = makedev(x.stx_rdev_major, x.stx_rdev_minor);
  st.st_size = static_cast<off_t>(x.stx_size);
  st.st_blksize = static_cast<blksize_t>(x.stx_blksize);
  st.st_blocks = static_cast<blkcnt_t>(x.stx_blocks);
  st.st_atim = time_of(x.stx_atime);
  st.st_mtim = time_of(x.stx_mtime);
  st.st_ctim = time_of(x.stx_ctime);
  return st;
}

// The file system of what was found; 0 when another one lies there by now.
std::uint64_t type_of(int dir, const char* name, std::uint64_t dev) {
  base::UniqueFd own;
  if (*name != '\0') {
    own.reset(::openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!own) return 0;
    dir = own.get();
  }
  struct stat st {};
  struct statfs fs {};
  if (::fstat(dir, &st) != 0 || st.st_dev != dev || ::fstatfs(dir, &fs) != 0) return 0;
  return static_cast<std::uint64_t>(fs.f_type);
}

base::Result<Stat> stat_without_birth(int dir, const char* name, int flags, const char* what) {
  Stat st;
  if (::fstatat(dir, name, &st, flags) != 0) return base::last_errno(what);
  return st;
}

base::Result<Stat> look_now(int dir, const char* name, int flags, const char* what) {
  static BirthDevices* const devices = new BirthDevices;  // lives as long as the last thread
  if (no_statx.load(std::memory_order_relaxed)) return stat_without_birth(dir, name, flags, what);
  struct statx x {};
  if (::statx(dir, name, flags, STATX_BASIC_STATS | STATX_BTIME, &x) != 0) {
    // Filters of container runtimes that do not know the call refuse it with EPERM, which it never says.
    const int error = errno;
    // A file system served by a process may say so as well: then the call works elsewhere.
    const bool refused = (error == ENOSYS || error == EPERM) &&
                         ::statx(AT_FDCWD, "/", AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &x) != 0;
    if (!refused) return base::errno_error(error, what);
    no_statx.store(true, std::memory_order_relaxed);
    return stat_without_birth(dir, name, flags, what);
  }
  auto st = stat_of(x);
  if ((x.stx_mask & STATX_BTIME) == 0 || base::fault::active("agent.no_birth")) return st;
  const bool holds = devices->holds(st.st_dev, std::chrono::steady_clock::now(),
                                    [&] { return type_of(dir, name, st.st_dev); });
  if (holds) st.birth = wire::birth_of(x.stx_btime.tv_sec * 1'000'000'000LL + x.stx_btime.tv_nsec);
  return st;
}

base::Result<Stat> look(int dir, const char* name, int flags, const char* what) {
  struct timespec now {};
  (void)::clock_gettime(CLOCK_REALTIME_COARSE, &now);  // as linux v6.1 fs/inode.c, current_time()
  auto st = look_now(dir, name, flags, what);
  if (st) st->looked_ns = now.tv_sec * 1'000'000'000LL + now.tv_nsec;
  return st;
}

}  // namespace

base::Result<Stat> stat_at(int dir, const char* name) {
  const int self = *name == '\0' ? AT_EMPTY_PATH : 0;
  return look(dir, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | self, "stat");
}

base::Result<Stat> stat_fd(int fd) { return look(fd, "", AT_EMPTY_PATH | AT_NO_AUTOMOUNT, "fstat"); }

bool births_hold(std::uint64_t f_type) {
  return f_type != OVERLAYFS_SUPER_MAGIC && f_type != kAufsMagic && f_type != kFuseMagic;
}

bool BirthDevices::holds(std::uint64_t dev, TimePoint now, const Ask& ask) {
  {
    base::MutexLock lock(mu_);
    const auto found = known_.find(dev);
    const bool fresh =
        found != known_.end() && (major(dev) != 0 || now - found->second.asked < kBirthsRecheck);
    if (fresh) return found->second.holds;
  }
  const auto type = ask();  // no lock: a file system may be slow
  if (type == 0) return false;
  base::MutexLock lock(mu_);
  if (known_.size() >= kMaxBirthDevices) known_.clear();
  known_[dev] = {births_hold(type), now};
  return births_hold(type);
}

}  // namespace nearbox::agent
