// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <sys/types.h>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::agent {

// Both ends of a new pseudo terminal, close-on-exec, the master non-blocking.
struct PtyPair {
  base::UniqueFd master;
  base::UniqueFd slave;
};

inline constexpr std::uint16_t kDefaultRows = 24;
inline constexpr std::uint16_t kDefaultCols = 80;

// Opens a pseudo terminal without grantpt and ptsname, which want NSS in some C libraries.
// `owner`, `group`: whose it becomes where we may give it away. Errors: those of /dev/ptmx.
// Source: ioctl_tty(2) (TIOCSPTLCK, TIOCGPTPEER since Linux 4.13), pts(4).
base::Result<PtyPair> open_pty(uid_t owner, gid_t group, std::uint16_t rows, std::uint16_t cols);
base::Result<void> resize_pty(int fd, std::uint16_t rows, std::uint16_t cols);
// The byte that means end of input on this terminal now.
char eof_byte(int fd);

}  // namespace nearbox::agent
