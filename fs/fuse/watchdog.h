// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <sys/types.h>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::fs {

// A small process that takes a mount away when the daemon died without doing so.
//
// Owns:    the pipe whose end of file tells the watchdog, and the child until it ended.
// Threads: one at a time.
// The child is another program image (exec), so it does not hold the fuse descriptor: the connection
// ends with the daemon, and clients get ENOTCONN until the watchdog has unmounted.
class Watchdog {
 public:
  static base::Result<Watchdog> start(const std::string& program, const std::string& mountpoint,
                                      unsigned minor);
  Watchdog() = default;
  Watchdog(Watchdog&& from) noexcept;
  Watchdog& operator=(Watchdog&& from) noexcept;
  ~Watchdog() { farewell(); }
  // The mount is gone in order: the child ends without touching anything. Bounded.
  void farewell();
  pid_t pid() const { return pid_; }

 private:
  base::UniqueFd pipe_;
  pid_t pid_ = -1;
};

// The child: `PROGRAM fuse-watchdog MOUNTPOINT MINOR`, the pipe as standard input. main() calls it when
// argv[1] is kWatchdogCommand. Ends when the mount is gone, after the farewell byte, or after clearing the
// mount.
inline constexpr const char* kWatchdogCommand = "fuse-watchdog";
int watchdog_main(int argc, char** argv);

}  // namespace nearbox::fs
