// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace nearbox::agent {

// What this process was given before it settled in, for the commands it starts.
struct Surroundings {
  std::uint64_t features = 0;     // wire::Feature bits of what holds now
  std::uint64_t nofile_soft = 0;  // the soft limit of descriptors
  std::string cgroup_procs;       // cgroup.procs of the group that was left (version 2); "": none
};

// Where the kernel shows what is changed; tests put other directories there.
struct KernelTrees {
  std::string proc = "/proc";
  std::string cgroup = "/sys/fs/cgroup";
};

// The part that needs root: out of the cgroup, and a lower OOM score.
Surroundings leave_limits(const KernelTrees& trees);

// Takes this process out of the cgroup that throttles builds (to the root, else a sibling named
// "nearbox") and lowers its OOM score, where that is allowed (to -900, else back to 0); raises the soft limit
// of descriptors. What is refused is left as it is.
Surroundings settle_in();

}  // namespace nearbox::agent
