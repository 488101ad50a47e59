// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "client/base/result.h"
#include "client/base/timers.h"
#include "fs/core/block_cache.h"
#include "fs/core/op_log.h"
#include "fs/core/prefetch.h"
#include "fs/core/readers.h"
#include "fs/core/symlinks.h"
#include "sync/engine/tree_store.h"

namespace nearbox::fs {

enum class Ownership {
  kMap,      // everything belongs to the mounting user; what is new takes the sandbox user
  kNumeric,  // real numbers both ways
};

struct MountOptions {
  std::string mountpoint;  // absolute, no symlink in its last component
  std::string path;  // what is shown: relative to the tree's root, "" for all of it; must be in the mirror
  SymlinkRule symlinks = SymlinkRule::kContain;
  Ownership ownership = Ownership::kMap;
  std::uint32_t uid = 0, gid = 0;  // of the mounting user
  bool allow_other = false;
  bool noexec = false;
  bool read_only = false;
  bool nonempty = false;
  std::chrono::milliseconds deadline = std::chrono::seconds(30);  // of a parked request
  // Started as `PROGRAM fuse-watchdog …`, see watchdog.h; "" for none.
  std::string watchdog_program = "/proc/self/exe";
};

// What a mount shows. All outlive it.
struct FsServices {
  sync::TreeStore& tree;
  OpLog& log;
  BlockCache& cache;
  api::AgentLink& link;
  base::Timers& timers;
  Prefetcher* prefetch = nullptr;  // nobody guesses
  Readers* readers = nullptr;      // nobody counts, all is allowed
};

struct MountStats {
  std::size_t parked = 0;
  std::size_t inodes = 0;
  std::uint64_t requests = 0;
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t invalidations = 0;  // told the kernel
};

// One mounted session of a FuseLoop.
//
// Owns:    the mount: the destructor unmounts it, lazily if busy.
// Threads: any; unmount() blocks up to its deadline and must not be called from a loop or link thread.
class MountSession {
 public:
  class Impl;
  explicit MountSession(std::unique_ptr<Impl> impl);
  ~MountSession();
  MountSession(const MountSession&) = delete;
  MountSession& operator=(const MountSession&) = delete;

  const std::string& mountpoint() const;
  // Takes the mount away: plainly, lazily when files are open, by aborting the connection when that
  // does not end it. Held requests get ENOTCONN. Errors: what kept it, when the mount is still there.
  base::Result<void> unmount(std::chrono::steady_clock::time_point deadline);
  // Runs once, on a loop thread, when the kernel ended the session (unmounted from outside, or aborted);
  // at once when that happened already. Must not block nor destroy the session.
  void on_gone(std::function<void()> fn);
  bool gone() const;
  MountStats stats() const;
  // True when every invalidation handed in before was given to the kernel (tests, barriers).
  bool wait_invalidated(std::chrono::steady_clock::time_point deadline);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace nearbox::fs
