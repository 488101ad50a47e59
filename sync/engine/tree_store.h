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
#include "client/wire/changes.h"
#include "sync/core/mirror.h"
#include "sync/engine/event_stream.h"

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
// Owns:    the mirror. The link, the timers and the listeners outlive it.
// Threads: any. read() and write() run short functions under the lock: no I/O, no call back into the
//          store but begin_operation() and end_operation(). Completions run on a link or timer thread,
//          each exactly once, never under a lock, and must not block or destroy the store; the
//          destructor runs what is left of them with ECANCELED.
// Errors:  of the agent, as errno; EPROTO when its answer breaks the format or a limit.
class TreeStore {
  struct Impl;

 public:
  using Done = std::function<void(int error)>;
  using Deadline = std::chrono::steady_clock::time_point;

  TreeStore(api::AgentLink& link, base::Timers& timers, base::Logger& log);
  ~TreeStore();

  // Takes what the agent tells of changes; before events.start(). The stream outlives the store. Without
  // it nothing is watched.
  void attach(EventStream& events);

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
  // When another thread is telling, or a listener calls this, that one tells these changes too.
  template <class F>
  auto write(F&& fn, ChangeListener* except = nullptr) {
    struct Tell {
      TreeStore& store;
      ~Tell() { store.tell(); }
    } tell{*this};
    base::WriterLock lock(mu_);
    struct Queue {  // under the lock, so that the order told is the order made
      TreeStore& store;
      ChangeListener* except;
      Changes changes;
      ~Queue() { store.queue(std::move(changes), except); }
    } made{*this, except, {}};
    return std::forward<F>(fn)(mirror_, made.changes);
  }

  // Makes `path` (relative to the root) and its ancestors known, and streams the whole subtree;
  // known(error) when the node itself is in the mirror, done(error) when all of it is. A subtree that
  // is loaded already completes at once.
  void load(const std::string& path, Deadline deadline, Done known, Done done);
  // A directory's entries are needed now: it is asked for first in a running load, else listed alone.
  // done(0) when listing(dir) is kComplete, else the errno (ETIMEDOUT at the deadline).
  void want(NodeIndex dir, Deadline deadline, Done done);
  // Streams every loaded subtree again and applies the differences; done when the last is through.
  // Runs that are asked for while one runs are answered by one more run. A subtree whose stream rests for
  // 20 s while the link is up, be it its first, is left out: the others are scanned, and the run ends with
  // ETIMEDOUT.
  void rescan(Deadline deadline, Done done);
  void set_rescan_stall(std::chrono::milliseconds stall);  // other than 20 s

  // Directories with own operations under way keep their entries in a rescan, files their attributes: see
  // apply_block(). The counter is per node; begin before the operation is sent, end after it was applied
  // here. A directory touched since the agent began to walk keeps its entries too (the walk may have been
  // there before the operation) and is listed alone soon after.
  // Events need no such care: what the agent looked at beside an operation it looks at again after it.
  void begin_operation(NodeIndex node);
  void end_operation(NodeIndex node);
  // The same for a change of one name alone, in the directory of that identity: other names of it are taken
  // from a walk all the same, so that writers who never pause hold up nothing.
  void begin_operation(NodeIndex dir, const wire::NodeId& id, std::string_view name);
  // Failed: nothing was changed. True: a walk has passed over the name meanwhile, so that what it leads to
  // may not be known; look_again() then.
  bool end_operation(NodeIndex dir, const wire::NodeId& id, std::string_view name, bool failed);
  // Lists a directory again (of a file: the one it is in) and what is wrong here is put right.
  void look_again(NodeIndex node);
  // Counts what events told of directories that are not known here.
  std::uint64_t unknown_told() const;

  // A question of the caller's own to the agent, from before it is sent until its answer was applied. What
  // events told or own operations touched meanwhile is newer. May be asked about in read() and write().
  class Question {
    friend class TreeStore;
    friend struct Impl;
    explicit Question(std::uint64_t began) : began_(began) {}
    const std::uint64_t began_;
  };
  std::shared_ptr<Question> ask_outside();
  bool told_since(const Question& question, const wire::NodeId& dir, std::string_view name) const;
  bool told_since(const Question& question, const wire::NodeId& node) const;
  bool overtaken(const Question& question, NodeIndex node) const;  // by an own operation

  // What happened in the sandbox below what is loaded before this call is in the mirror, and was told to the
  // listeners, when done(0) runs. By the agent's barrier where it watches, else by a scan.
  void barrier(Deadline deadline, Done done);
  // The same with the agent's barrier passed by somebody else already: events up to `seq` of `instance`
  // tell what happened before. 0: not passed.
  void barrier(std::uint64_t instance, std::uint64_t seq, Deadline deadline, Done done);
  struct WatchStatus {
    wire::WatchKind kind = wire::WatchKind::kNone;  // of the subtree that is worst off
    int error = 0;                                  // why kNone
    std::size_t subtrees = 0, watched = 0;
    std::uint64_t looking_again = 0;                   // directories about to be listed again
    std::uint64_t changed = 0, lost = 0, unknown = 0;  // states and losses told; of unknown directories
    EventStream::Position position;
  };
  WatchStatus watch_status() const;

  void add_listener(ChangeListener* listener);
  void remove_listener(ChangeListener* listener);  // no call is running when it returns

 private:
  void queue(Changes&& changes, ChangeListener* except);
  void tell();

  mutable base::SharedMutex mu_;
  Mirror mirror_;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nearbox::sync
