// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace nearbox::agent {

// Takes this process out of the cgroup that throttles builds (to the root, else a sibling named
// "nearbox") and lowers its OOM score, where that is allowed; raises the soft limit of descriptors.
// What is refused is left as it is. Returns wire::Feature bits of what holds now.
std::uint64_t settle_in();

}  // namespace nearbox::agent
