// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <string_view>
#include <sys/types.h>

namespace nearbox::agent {

// Whether any of these process groups has a member that is no zombie. True, too, when /proc cannot
// tell.
bool any_group_alive(const std::set<pid_t>& groups);

// The process group in a /proc/PID/stat line; 0 for a zombie or a line that is none.
pid_t live_group_of(std::string_view stat_line);

}  // namespace nearbox::agent
