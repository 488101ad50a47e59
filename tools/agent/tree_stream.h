// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/channel/mux_server.h"
#include "tools/agent/tree_walk.h"

namespace nearbox::agent {

// Sends a walk as one zstd stream (level 1): flushed right after the first block, after a block that
// somebody hurried, and at least every 100 ms or 256 KiB of blocks. Blocks on the client's credit.
// Returns the errno the call ends with; the caller ends it.
int stream_tree(TreeWalk& walk, channel::Responder& responder);

}  // namespace nearbox::agent
