// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::sandbox_server {

struct ProcessSpec;

struct Child {
  pid_t pid = -1;
  base::UniqueFd pidfd;
  base::UniqueFd in;  // ours: write end of its stdin; absent without stdin or with a pty
  base::UniqueFd out;
  base::UniqueFd err;
  base::UniqueFd terminal;  // the pty's master
};

// Starts a program as the user of `spec`, through /bin/sh, so that an unknown one ends with 127 and
// its message on stderr. Safe in a program with threads. EINVAL: the directory cannot be entered.
base::Result<Child> spawn_child(const ProcessSpec& spec);

}  // namespace nearbox::sandbox_server
