// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <string>
#include <thread>

#include "client/base/log.h"
#include "client/base/mutex.h"

namespace nearbox::sandbox_server {

// Removes directories in the background, one after another: a large one takes long, and the timeouts
// of other sandboxes must not wait for it.
//
// Owns:    the directory `dir` with what was put there, and a thread; stop() removes the rest and joins.
// Threads: any.
// Bounds:  a directory for each sandbox that ended; kMaxOpenDepth descriptors at a time, twice.
// Errors:  what cannot be removed is logged and stays; the next server tries again.
class Trash {
 public:
  Trash(std::string dir, base::Logger& log);
  ~Trash() { stop(); }
  Trash(const Trash&) = delete;
  Trash& operator=(const Trash&) = delete;

  // Moves `path`, of the same file system, out of the way at once; its files go later. False: it could not be
  // moved.
  bool take(const std::string& path) EXCLUDES(mu_);
  // Removes what an earlier owner left in `dir`, here and now. The number of directories.
  std::size_t empty_now();
  // Idempotent.
  void stop() EXCLUDES(mu_);
  std::size_t waiting() EXCLUDES(mu_);

 private:
  void run() noexcept EXCLUDES(mu_);
  void remove(const std::string& name);

  const std::string dir_;
  base::Logger& log_;
  base::Mutex mu_;  // rank: leaf
  base::CondVar changed_;
  std::deque<std::string> names_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
  std::jthread thread_;  // last: it uses the others
};

// Removes the entry `name` of the open directory `parent` with all below it. Follows no link, and
// opens up directories that refuse (an overlay's work directory has no permissions at all) by their
// descriptor alone, since code of a sandbox may exchange names meanwhile.
// False: something is left.
bool remove_tree(int parent, const char* name);

}  // namespace nearbox::sandbox_server
