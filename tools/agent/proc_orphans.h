// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>
#include <vector>

#include "client/base/unique_fd.h"

// What a table leaves behind: background commands run on when their session is gone.
// Threads: any, all functions.
namespace nearbox::agent {

inline constexpr std::size_t kMaxDrained = 2048;  // descriptors of one drain_elsewhere()

// A child that nobody waits for any more: reaped by a later reap_orphans(), once it has ended.
void adopt_orphan(pid_t pid);
void reap_orphans();

// Reads and discards what still comes from these, in a process of its own that ends with their last
// writer: a command whose output nobody keeps must not die of SIGPIPE, nor when the agent ends. It
// closes the terminal masters among them only then, so no SIGHUP either. Without the process (fork
// fails) they are closed.
void drain_elsewhere(std::vector<base::UniqueFd> fds);

}  // namespace nearbox::agent
