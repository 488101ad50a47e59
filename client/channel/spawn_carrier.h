// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "client/base/result.h"
#include "client/channel/carrier.h"

namespace nearbox::channel {

struct SpawnOptions {
  // Each step of ending the child may take so long: after its stdin was closed, after TERM, after KILL.
  std::chrono::milliseconds end_step{1000};
};

// Starts a program and carries bytes over its stdin and stdout (a socket pair): `ssh HOST nearbox-agent
// connect`, `docker exec -i …`. argv[0] is looked up in PATH; the environment is ours.
//
// Owns:    the child, in a process group of its own: the destructor closes its stdin, then sends TERM,
//          then KILL to the group, each with a bounded wait, and reaps it. The child also gets KILL
//          when the thread that called this ends (PR_SET_PDEATHSIG), so call it on a thread that
//          outlives the carrier. Also a thread that keeps the last kMaxStderr bytes of its stderr.
// Errors:  ENOENT, EACCES …: the program could not be started. When the child ends, read() fails with
//          ECONNRESET and the exit status and the end of its stderr in the text (control characters
//          replaced), or gives 0 when it ended well and said nothing.
base::Result<std::unique_ptr<Carrier>> spawn_carrier(const std::vector<std::string>& argv,
                                                     const SpawnOptions& options = {});

inline constexpr std::size_t kMaxStderr = 4096;

}  // namespace nearbox::channel
