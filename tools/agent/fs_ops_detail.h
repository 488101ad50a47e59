// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/base/result.h"
#include "client/wire/messages.h"
#include "tools/agent/fs_ops.h"
#include "tools/agent/fs_path.h"

// Shared by the files that implement apply_op(); nothing else includes it.
namespace nearbox::agent::detail {

using base::Result;

inline bool has_flag(const wire::Op& op, std::uint8_t flag) { return (op.op_flags & flag) != 0; }
inline bool retried(const wire::Op& op) { return has_flag(op, wire::kOpRetry); }

// uid and gid with kOwnerUser resolved.
struct Owner {
  uid_t uid;
  gid_t gid;
};
Owner owner_of(const OpContext& context, const wire::Op& op);

// The directory an operation changes: opened, and checked against `expect`.
Result<Place> place_in(OpContext& context, std::uint32_t root, const std::string& path,
                       wire::NodeId expect_parent);
// The place of op.path; its node is checked by whoever looks at it.
Result<Place> place_of(OpContext& context, const wire::Op& op);

Result<void> set_mtime(int dir, const std::string& name, std::int64_t mtime_ns);
Result<void> set_mtime(int fd, std::int64_t mtime_ns);

// fs_ops_names.cpp
Result<void> do_make(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_link(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_unlink(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_rmdir(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_rename(OpContext& context, const wire::Op& op, wire::OpDone& done);

// fs_ops_data.cpp
Result<void> do_write(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_append(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_truncate(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_fallocate(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_fsync(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_copy_range(OpContext& context, const wire::Op& op, wire::OpDone& done);

// fs_ops_attr.cpp
Result<void> do_set_attr(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_set_xattr(OpContext& context, const wire::Op& op, wire::OpDone& done);
Result<void> do_remove_xattr(OpContext& context, const wire::Op& op, wire::OpDone& done);

// A descriptor for data: the kept file of op.orphan or a fresh one. `fd` stays valid with it.
struct DataFile {
  OrphanTable::FdPtr kept;
  base::UniqueFd own;
  int fd = -1;
  Place place;  // of a fresh one
};
Result<DataFile> open_data(OpContext& context, const wire::Op& op, int flags);

}  // namespace nearbox::agent::detail
