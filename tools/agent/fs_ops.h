// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/wire/messages.h"
#include "tools/agent/orphans.h"
#include "tools/agent/passwd.h"
#include "tools/agent/roots.h"
#include "tools/agent/watch/own_writes.h"

namespace nearbox::agent {

// What operations act on: of one session, outlives every operation.
struct OpContext {
  const Identity& who;
  RootTable& roots;
  OrphanTable& orphans;
  OwnWrites* own_writes = nullptr;  // if the watcher has to be told of them
};

// Applies one operation and says how it went. Blocking file system calls only.
//
// Threads: any; the caller keeps operations apart that must not run side by side.
// Errors:  in OpDone.error: errno of the call that failed; EINVAL for fields that make no sense,
//          ESTALE when a node, parent, root or kept file is another one than expected.
// Owners:  as root new nodes get op.uid and op.gid (kOwnerUser: the sandbox user; the group of a
//          set-group-id directory is inherited); otherwise this process' own.
wire::OpDone apply_op(OpContext& context, const wire::Op& op) noexcept;

}  // namespace nearbox::agent
