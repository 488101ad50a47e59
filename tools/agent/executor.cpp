// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/executor.h"

#include <algorithm>

#include "client/wire/limits.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kNodeCost = 256;  // what an operation weighs besides its bytes

std::size_t weight(const wire::Op& op) {
  return kNodeCost + op.data.size() + op.path.size() + op.path2.size() + op.target.size();
}

}  // namespace

Executor::Executor(ApplyFn apply, DoneFn done, std::shared_ptr<Parking> parking, LaneFn lane)
    : apply_(std::move(apply)),
      done_(std::move(done)),
      parking_(std::move(parking)),
      lane_(std::move(lane)),
      pool_("ops", kOpThreads, kOpsPerLane) {}

Executor::~Executor() { stop(); }

void Executor::stop() { pool_.stop(); }

bool Executor::submit(std::vector<wire::Op> ops) {
  std::vector<Node*> ready;
  {
    base::MutexLock lock(mu_);
    for (auto& op : ops) {
      if (op.op_id < next_ || early_.count(op.op_id) != 0) continue;  // sent again
      if (nodes_.size() + early_.size() >= kMaxOpsWaiting) return false;
      if (bytes_ + weight(op) > 2 * wire::kMaxOpBytesInFlight) return false;
      bytes_ += weight(op);
      if (op.op_id > next_) {
        const auto id = op.op_id;
        early_.emplace(id, std::move(op));
        continue;
      }
      accept_locked(std::move(op), ready);
      while (!early_.empty() && early_.begin()->first == next_) {
        auto early = early_.extract(early_.begin());
        accept_locked(std::move(early.mapped()), ready);
      }
    }
  }
  for (Node* node : ready) start(node);
  return true;
}

void Executor::accept_locked(wire::Op&& op, std::vector<Node*>& ready) {
  auto owned = std::make_unique<Node>();
  Node* node = owned.get();
  node->bytes = weight(op);
  node->op = std::move(op);
  next_ = node->op.op_id + 1;
  if ((node->op.op_flags & wire::kOpBarrier) != 0) {
    for (auto it = nodes_.rbegin(); it != nodes_.rend(); ++it) {
      depend_locked(node, it->second.get());
      if (it->second.get() == barrier_) break;  // what lies before it is done when it is
    }
    barrier_ = node;
  } else if (barrier_ != nullptr) {
    depend_locked(node, barrier_);
  }
  add_keys_locked(node);
  if (node->waits_for == 0) ready.push_back(node);
  nodes_.emplace(node->op.op_id, std::move(owned));
}

void Executor::depend_locked(Node* node, Node* on) {
  if (node == on) return;
  on->dependents.push_back(node);
  ++node->waits_for;
}

void Executor::add_keys_locked(Node* node) {
  for (const auto& key : node->op.keys) {
    KeyState& state = keys_[key.key];
    if (!key.exclusive) {
      if (state.exclusive != nullptr) depend_locked(node, state.exclusive);
      if (state.exclusive != node) state.shared.push_back(node);
      continue;
    }
    if (state.shared.empty() && state.exclusive != nullptr) depend_locked(node, state.exclusive);
    for (Node* before : state.shared) depend_locked(node, before);
    state.shared.clear();
    state.exclusive = node;
  }
}

void Executor::drop_keys_locked(Node* node) {
  for (const auto& key : node->op.keys) {
    const auto it = keys_.find(key.key);
    if (it == keys_.end()) continue;
    KeyState& state = it->second;
    if (state.exclusive == node) state.exclusive = nullptr;
    state.shared.erase(std::remove(state.shared.begin(), state.shared.end(), node), state.shared.end());
    if (state.exclusive == nullptr && state.shared.empty()) keys_.erase(it);
  }
}

void Executor::start(Node* node) {
  if (!pool_.submit([this, node] { run(node); }, lane_ ? lane_(node->op) : 0)) {
    // Stopping, or far above every bound of ours: it is never applied, and never acknowledged.
    return;
  }
}

void Executor::run(Node* node) {
  Parking::Item hold{"agent.hold_op", node->op.path, [] { return false; }, [this, node] { start(node); }};
  if (parking_ && parking_->park_if_held(hold)) return;
  const auto done = apply_(node->op);
  done_(node->op, done);
  finish(node);
}

void Executor::finish(Node* node) {
  std::vector<Node*> ready;
  std::unique_ptr<Node> owned;  // freed outside the lock
  {
    base::MutexLock lock(mu_);
    drop_keys_locked(node);
    if (barrier_ == node) barrier_ = nullptr;
    bytes_ -= node->bytes;
    for (Node* after : node->dependents) {
      if (--after->waits_for == 0) ready.push_back(after);
    }
    const auto it = nodes_.find(node->op.op_id);
    owned = std::move(it->second);
    nodes_.erase(it);
  }
  for (Node* after : ready) start(after);
}

std::size_t Executor::waiting() {
  base::MutexLock lock(mu_);
  return nodes_.size() + early_.size();
}

}  // namespace nearbox::agent
