// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>

#include "client/base/log.h"
#include "client/base/result.h"
#include "fs/fuse/mount_session.h"

namespace nearbox::fs {

struct FuseLoopOptions {
  int workers = 3;
  // How long a worker looks for the next request before it sleeps: a wake-up costs more than most answers.
  std::chrono::microseconds busy_poll{100};
};

// Reads requests of all sessions with a few threads. Handlers never wait, so few are enough.
//
// Owns:    the workers, joined by the destructor, which comes after all MountSessions are gone.
// Threads: mount() any.
class FuseLoop {
 public:
  FuseLoop(FuseLoopOptions options, base::Logger& log);
  ~FuseLoop();
  FuseLoop(const FuseLoop&) = delete;
  FuseLoop& operator=(const FuseLoop&) = delete;

  // Mounts options.path of the tree. Errors: MountPoint's; ENOENT, ENOTDIR when options.path is no
  // directory that the mirror knows.
  base::Result<std::unique_ptr<MountSession>> mount(const MountOptions& options, const FsServices& services);

  class Core;

 private:
  std::shared_ptr<Core> core_;
};

}  // namespace nearbox::fs
