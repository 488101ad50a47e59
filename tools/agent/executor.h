// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "client/base/mutex.h"
#include "client/wire/messages.h"
#include "tools/agent/parking.h"
#include "tools/agent/worker_pool.h"

namespace nearbox::agent {

inline constexpr std::size_t kOpThreads = 8;
inline constexpr std::size_t kOpsPerLane = 4;           // at one time on one file system (MountLanes)
inline constexpr std::size_t kMaxOpsWaiting = 1 << 20;  // of one session, applied or not yet in order

// Applies the operations of one session: in order of op_id where two share a key (one of them
// exclusively) or a barrier lies between, side by side otherwise; each op_id once.
//
// Owns:    the operations not applied yet and the threads that apply them; the destructor drops
//          what has not begun and waits for what has.
// Threads: any may submit. `apply` and `done` run on the executor's threads; `done` of an operation
//          has returned before one that depends on it is applied.
// Order:   op_id is dense: an operation that comes before its predecessor waits for it. A
//          session begins with 1; an id below the next one is a repetition.
// Bounds:  twice kMaxOpBytesInFlight bytes and kMaxOpsWaiting operations; then submit() is false
//          and the session is broken.
class Executor {
 public:
  using ApplyFn = std::function<wire::OpDone(const wire::Op&)>;
  using DoneFn = std::function<void(const wire::Op&, const wire::OpDone&)>;
  using LaneFn = std::function<WorkerPool::Lane(const wire::Op&)>;
  Executor(ApplyFn apply, DoneFn done, std::shared_ptr<Parking> parking, LaneFn lane = {});
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  bool submit(std::vector<wire::Op> ops) EXCLUDES(mu_);
  std::size_t waiting() EXCLUDES(mu_);
  void stop();  // as the destructor does

 private:
  struct Node {
    wire::Op op;
    std::size_t bytes = 0;
    std::size_t waits_for = 0;
    std::vector<Node*> dependents;
  };
  struct KeyState {
    Node* exclusive = nullptr;  // the last exclusive one still there
    std::vector<Node*> shared;  // those after it
  };

  void accept_locked(wire::Op&& op, std::vector<Node*>& ready) REQUIRES(mu_);
  void depend_locked(Node* node, Node* on) REQUIRES(mu_);
  void add_keys_locked(Node* node) REQUIRES(mu_);
  void drop_keys_locked(Node* node) REQUIRES(mu_);
  void start(Node* node);
  void run(Node* node);
  void finish(Node* node) EXCLUDES(mu_);

  const ApplyFn apply_;
  const DoneFn done_;
  const std::shared_ptr<Parking> parking_;
  const LaneFn lane_;
  base::Mutex mu_;                                                        // rank: leaf
  std::map<std::uint64_t, std::unique_ptr<Node>> nodes_ GUARDED_BY(mu_);  // in order, not applied yet
  std::map<std::uint64_t, wire::Op> early_ GUARDED_BY(mu_);               // before their predecessor
  std::unordered_map<std::uint64_t, KeyState> keys_ GUARDED_BY(mu_);
  Node* barrier_ GUARDED_BY(mu_) = nullptr;  // the last one still there
  std::uint64_t next_ GUARDED_BY(mu_) = 1;   // the op_id that comes next
  std::size_t bytes_ GUARDED_BY(mu_) = 0;
  WorkerPool pool_;  // last: its threads use the others
};

}  // namespace nearbox::agent
