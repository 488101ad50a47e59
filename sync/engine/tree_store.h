// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/base/timers.h"
#include "sync/core/mirror.h"

namespace nearbox::sync {

// Shows the mirror to somebody: a FUSE session.
class ChangeListener {
 public:
  virtual ~ChangeListener() = default;
  // Called without the tree's lock, in the order the changes were made, possibly from several threads
  // one after another. Must not block.
  virtual void on_changes(const Changes& changes) noexcept = 0;
};

// The mirror with its lock, its loader and those who show it.
//
// Owns:    the mirror.
// Threads: any. read() and write() run short functions under the lock: no I/O, no call back into the
//          store. Completions run on a link or timer thread and must not block.
// Errors:  of the agent, as errno.
class TreeStore {
 public:
  using Done = std::function<void(int error)>;
  using Deadline = std::chrono::steady_clock::time_point;

  TreeStore(api::AgentLink& link, base::Timers& timers, base::Logger& log);
  ~TreeStore();

  // Opens the agent's root ("/" of the sandbox, or a directory) that all paths are relative to. Comes
  // first; done() tells when the mirror's root node is there. Repeated by the store after an agent
  // was restarted.
  void open_root(std::string path, Deadline deadline, Done done);
  std::uint32_t root() const;     // the number the agent knows it by; changes with a new agent
  std::string root_path() const;  // canonical

  template <class F>
  auto read(F&& fn) const {
    base::ReaderLock lock(mu_);
    return std::forward<F>(fn)(std::as_const(mirror_));
  }
  // Runs fn(mirror, changes) exclusively, then tells the listeners (all but `except`) what changed.
  template <class F>
  auto write(F&& fn, ChangeListener* except = nullptr) {
    Changes changes;
    struct Tell {
      TreeStore& store;
      Changes& changes;
      ChangeListener* except;
      ~Tell() { store.tell(changes, except); }
    } tell{*this, changes, except};
    base::WriterLock lock(mu_);
    return std::forward<F>(fn)(mirror_, changes);
  }

  // Makes `path` (relative to the root) and its ancestors known, and streams the whole subtree;
  // known(error) when the node itself is in the mirror, done(error) when all of it is. A subtree that
  // is loaded already completes at once.
  void load(const std::string& path, Deadline deadline, Done known, Done done);
  // A directory's entries are needed now: it is asked for first in a running load, else listed alone.
  // done(0) when listing(dir) is kComplete, else the errno (ETIMEDOUT at the deadline).
  void want(NodeIndex dir, Deadline deadline, Done done);
  // Streams every loaded subtree again and applies the differences; done when the last is through.
  // Runs that are asked for while one runs are answered by one more run.
  void rescan(Deadline deadline, Done done);

  // Directories with own operations under way keep their entries in a rescan: see apply_block().
  // The counter is per directory; begin before the operation is sent, end after it was applied here.
  void begin_operation(NodeIndex dir);
  void end_operation(NodeIndex dir);

  void add_listener(ChangeListener* listener);
  void remove_listener(ChangeListener* listener);  // no call is running when it returns

 private:
  void tell(const Changes& changes, ChangeListener* except);

  struct Impl;
  mutable base::SharedMutex mu_;
  Mirror mirror_;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nearbox::sync
