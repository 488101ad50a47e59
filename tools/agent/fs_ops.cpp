// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/fs_ops.h"

#include <exception>
#include <fcntl.h>
#include <sys/stat.h>

#include "tools/agent/fs_ops_detail.h"
#include "tools/agent/versions.h"

namespace nearbox::agent {
namespace detail {

Owner owner_of(const OpContext& context, const wire::Op& op) {
  return {op.uid == wire::kOwnerUser ? context.who.uid : op.uid,
          op.gid == wire::kOwnerUser ? context.who.gid : op.gid};
}

Result<Place> place_in(OpContext& context, std::uint32_t root, const std::string& path,
                       wire::NodeId expect_parent) {
  auto at = context.roots.get(root);
  if (!at) return std::move(at).error();
  auto place = open_place((*at)->dir.get(), path);
  if (!place || expect_parent == wire::NodeId{}) return place;
  auto st = stat_fd(place->dir.get());
  if (!st) return std::move(st).error();
  if (!wire::same_node(node_of(*st), expect_parent)) return base::errno_error(ESTALE, "parent");
  return place;
}

Result<Place> place_of(OpContext& context, const wire::Op& op) {
  return place_in(context, op.root, op.path, wire::NodeId{});
}

namespace {
void mtime_spec(std::int64_t ns, struct timespec (&times)[2]) {
  times[0].tv_nsec = UTIME_OMIT;
  times[1].tv_sec = ns / 1'000'000'000;
  times[1].tv_nsec = ns % 1'000'000'000;
  if (times[1].tv_nsec < 0) {  // before the epoch
    times[1].tv_nsec += 1'000'000'000;
    --times[1].tv_sec;
  }
}
}  // namespace

Result<void> set_mtime(int dir, const std::string& name, std::int64_t mtime_ns) {
  if (mtime_ns == 0) return {};
  struct timespec times[2] = {};
  mtime_spec(mtime_ns, times);
  if (::utimensat(dir, name.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) return base::last_errno("utimens");
  return {};
}

Result<void> set_mtime(int fd, std::int64_t mtime_ns) {
  if (mtime_ns == 0) return {};
  struct timespec times[2] = {};
  mtime_spec(mtime_ns, times);
  if (::futimens(fd, times) != 0) return base::last_errno("utimens");
  return {};
}

namespace {
Result<void> dispatch(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  switch (op.kind) {
    case wire::OpKind::kCreate:
    case wire::OpKind::kMkdir:
    case wire::OpKind::kMknod:
    case wire::OpKind::kSymlink:
      return do_make(context, op, done);
    case wire::OpKind::kLink:
      return do_link(context, op, done);
    case wire::OpKind::kUnlink:
      return do_unlink(context, op, done);
    case wire::OpKind::kRmdir:
      return do_rmdir(context, op, done);
    case wire::OpKind::kRename:
      return do_rename(context, op, done);
    case wire::OpKind::kWrite:
      return do_write(context, op, done);
    case wire::OpKind::kAppend:
      return do_append(context, op, done);
    case wire::OpKind::kTruncate:
      return do_truncate(context, op, done);
    case wire::OpKind::kSetAttr:
      return do_set_attr(context, op, done);
    case wire::OpKind::kFallocate:
      return do_fallocate(context, op, done);
    case wire::OpKind::kFsync:
      return do_fsync(context, op, done);
    case wire::OpKind::kSetXattr:
      return do_set_xattr(context, op, done);
    case wire::OpKind::kRemoveXattr:
      return do_remove_xattr(context, op, done);
    case wire::OpKind::kCopyRange:
      return do_copy_range(context, op, done);
  }
  return base::errno_error(ENOSYS, "operation");
}
}  // namespace

}  // namespace detail

wire::OpDone apply_op(OpContext& context, const wire::Op& op) noexcept {
  wire::OpDone done;
  done.op_id = op.op_id;
  const Uncounted here(context.roots.uncounted(op.root, op.path));
  try {
    if (auto result = detail::dispatch(context, op, done); !result) done.error = result.error().as_errno();
  } catch (const std::exception&) {  // allocation
    done.error = ENOMEM;
  }
  return done;
}

}  // namespace nearbox::agent
