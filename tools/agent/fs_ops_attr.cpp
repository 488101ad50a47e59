// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "tools/agent/fs_ops_detail.h"
#include "tools/agent/xattrs.h"

// Operations on attributes.
namespace nearbox::agent::detail {
namespace {

// What attributes are set on: an open kept file, or a name in a directory.
struct Target {
  OrphanTable::FdPtr kept;
  Place place;
  Stat st;

  int chown(uid_t uid, gid_t gid) const {
    return kept ? ::fchown(kept->get(), uid, gid)
                : ::fchownat(place.dir.get(), place.name.c_str(), uid, gid, AT_SYMLINK_NOFOLLOW);
  }
  int chmod(mode_t mode) const {
    return kept ? ::fchmod(kept->get(), mode)
                : ::fchmodat(place.dir.get(), place.name.c_str(), mode, AT_SYMLINK_NOFOLLOW);
  }
  int utimens(const struct timespec* times) const {
    return kept ? ::futimens(kept->get(), times)
                : ::utimensat(place.dir.get(), place.name.c_str(), times, AT_SYMLINK_NOFOLLOW);
  }
  Result<Stat> stat_again() const { return kept ? stat_fd(kept->get()) : stat_place(place, node_of(st)); }
};

Result<Target> target_of(OpContext& context, const wire::Op& op) {
  Target target;
  if (op.orphan != 0) {
    auto kept = context.orphans.get(op.orphan, op.expect);
    if (!kept) return std::move(kept).error();
    target.kept = std::move(*kept);
    auto st = stat_fd(target.kept->get());
    if (!st) return std::move(st).error();
    target.st = *st;
    return target;
  }
  auto place = place_of(context, op);
  if (!place) return std::move(place).error();
  auto st = stat_place(*place, op.expect);
  if (!st) return std::move(st).error();
  target.place = std::move(*place);
  target.st = *st;
  return target;
}

struct timespec time_of(std::uint32_t mask, wire::SetMask set, wire::SetMask now, std::int64_t ns) {
  struct timespec t {};
  if ((mask & now) != 0) {
    t.tv_nsec = UTIME_NOW;
  } else if ((mask & set) == 0) {
    t.tv_nsec = UTIME_OMIT;
  } else {
    t.tv_sec = ns / 1'000'000'000;
    t.tv_nsec = ns % 1'000'000'000;
    if (t.tv_nsec < 0) {
      t.tv_nsec += 1'000'000'000;
      --t.tv_sec;
    }
  }
  return t;
}

constexpr std::uint32_t kTimes = wire::kSetMtime | wire::kSetAtime | wire::kSetMtimeNow | wire::kSetAtimeNow;

}  // namespace

Result<void> do_set_attr(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  auto target = target_of(context, op);
  if (!target) return std::move(target).error();
  done.before = make_attr_before(target->st);
  if ((op.set_mask & (wire::kSetUid | wire::kSetGid)) != 0) {  // before the mode: it clears set-id bits
    const auto owner = owner_of(context, op);
    const auto none = static_cast<uid_t>(-1);
    const uid_t uid = (op.set_mask & wire::kSetUid) != 0 ? owner.uid : none;
    const gid_t gid = (op.set_mask & wire::kSetGid) != 0 ? owner.gid : none;
    if (target->chown(uid, gid) != 0) return base::last_errno("chown");
  }
  if ((op.set_mask & wire::kSetMode) != 0 && target->chmod(op.mode & 07777) != 0) {
    return base::last_errno("chmod");
  }
  if ((op.set_mask & kTimes) != 0) {
    const struct timespec times[2] = {time_of(op.set_mask, wire::kSetAtime, wire::kSetAtimeNow, op.atime_ns),
                                      time_of(op.set_mask, wire::kSetMtime, wire::kSetMtimeNow, op.mtime_ns)};
    if (target->utimens(times) != 0) return base::last_errno("utimens");
  }
  auto st = target->stat_again();
  if (!st) return std::move(st).error();
  done.attr = make_attr(*st);
  return {};
}

namespace {

Result<OrphanTable::FdPtr> xattr_fd(OpContext& context, const wire::Op& op) {
  if (op.orphan != 0) return context.orphans.get(op.orphan, op.expect);
  auto place = place_of(context, op);
  if (!place) return std::move(place).error();
  auto fd = open_for_xattr(*place, op.expect);
  if (!fd) return std::move(fd).error();
  return std::make_shared<base::UniqueFd>(std::move(*fd));
}

Result<void> fill_attr(int fd, wire::OpDone& done) {
  auto st = stat_fd(fd);
  if (!st) return std::move(st).error();
  done.attr = make_attr(*st);
  return {};
}

}  // namespace

Result<void> do_set_xattr(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (!user_xattr(op.target)) return base::errno_error(EOPNOTSUPP, "xattr name");
  if (op.data.size() > wire::kMaxXattrBytes) return base::errno_error(E2BIG, "xattr");
  auto fd = xattr_fd(context, op);
  if (!fd) return std::move(fd).error();
  const int flags = static_cast<int>(op.flags & (XATTR_CREATE | XATTR_REPLACE));
  if (::fsetxattr((*fd)->get(), op.target.c_str(), op.data.data(), op.data.size(), flags) != 0) {
    const int error = errno;
    auto there = error == EEXIST && retried(op) ? get_xattr((*fd)->get(), op.target)
                                                : Result<wire::Bytes>(base::errno_error(error));
    if (!there || *there != op.data) return base::errno_error(error, "setxattr");
  }
  return fill_attr((*fd)->get(), done);
}

Result<void> do_remove_xattr(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (!user_xattr(op.target)) return base::errno_error(ENODATA, "xattr name");
  auto fd = xattr_fd(context, op);
  if (!fd) return std::move(fd).error();
  if (::fremovexattr((*fd)->get(), op.target.c_str()) != 0 && !(errno == ENODATA && retried(op))) {
    return base::last_errno("removexattr");
  }
  return fill_attr((*fd)->get(), done);
}

}  // namespace nearbox::agent::detail
