// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "fs/core/block_cache.h"
#include "fs/core/inode_table.h"
#include "fs/core/op_log.h"
#include "sync/engine/tree_store.h"

namespace nearbox::fs {

// How to name a node to the agent: its path now, else its kept file.
// `expect` is set to the node's identity. Nothing when the node has neither.
std::optional<wire::PathCall> locate(sync::TreeStore& tree, const Orphans& orphans, sync::NodeIndex node,
                                     const wire::NodeId& id);

// Asks the agent what lies at these paths now, and at the directories above them, and brings the mirror up
// to date. A name is taken out of the mirror or led elsewhere only when its directory is still where it was,
// no operation of ours touched that meanwhile, and no rename of ours was on the way.
void refresh(sync::TreeStore& tree, api::AgentLink& link, const DirRenames& renames,
             const std::vector<std::string>& paths, std::function<void()> done);
// The same for the name of a node.
void refresh(sync::TreeStore& tree, api::AgentLink& link, const DirRenames& renames, sync::NodeIndex node,
             std::function<void()> done);

// The hooks of a block cache over `tree`; all four outlive the cache.
BlockCacheHooks tree_hooks(sync::TreeStore& tree, api::AgentLink& link, OpLog& log, base::Timers& timers);

}  // namespace nearbox::fs
