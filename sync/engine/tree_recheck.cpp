// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <sys/stat.h>

#include "sync/engine/tree_store_impl.h"

// Directories that are listed again because of what was told of them, and the barrier, which waits for them.
namespace nearbox::sync {

using namespace std::chrono_literals;

// ---- looking again

void TreeStore::Impl::recheck(const Rechecks& dirs) {
  if (dirs.empty()) return;
  bool too_many = false;
  {
    base::MutexLock lock(mu);
    const auto ticket = ++recheck_count;
    for (const auto& [dir, deep] : dirs) {
      if (dir == kNoNode) continue;
      const auto found = rechecks.find(dir);
      if (found == rechecks.end()) {
        if ((too_many = rechecks.size() >= kMaxRechecks)) break;
        rechecks[dir] = {deep, false, false, ticket, 0, 0};
        recheck_queue.push_back(dir);
        continue;
      }
      auto& one = found->second;
      one.deep = one.deep || deep;
      if (one.running) one.again = true, one.asked_again = ticket;
    }
  }
  if (too_many) {
    store.write([](Mirror& mirror, Changes& changes) {
      mirror.distrust(Mirror::kRoot, true, true, changes);
      changes.push_back({Change::Kind::kAll, kNoNode, kNoNode, {}});
    });
    rescan({});
  }
  later(0ms, [this] { recheck_step(); });
}

void TreeStore::Impl::recheck_all(const std::set<NodeIndex>& dirs) {
  Rechecks all;
  for (const auto dir : dirs) all.emplace_back(dir, false);
  recheck(all);
}

void TreeStore::Impl::recheck_step() {
  while (true) {
    NodeIndex dir = kNoNode;
    bool deep = false;
    {
      base::MutexLock lock(mu);
      if (recheck_queue.empty() || rechecks_running >= kRelistAtOnce) return;
      dir = recheck_queue.front();
      recheck_queue.pop_front();
      auto& one = rechecks.at(dir);
      one.running = true;
      deep = one.deep;
      ++rechecks_running;
    }
    const auto at = store.read([&](const Mirror& mirror) {
      const bool is_dir = S_ISDIR(mirror.attr(dir).mode);
      return mirror.alive(dir) && is_dir ? mirror.path(dir) : std::nullopt;
    });
    if (!at) {
      rechecked(dir, 0, {});
      continue;
    }
    walk(*at, deep ? 0 : 1, Clock::now() + (deep ? kStreamDeadline : kCallDeadline),
         [this, dir](int error, const std::set<NodeIndex>& skipped) { rechecked(dir, error, skipped); });
  }
}

// Tries again what failed, or was held up by own operations.
void TreeStore::Impl::rechecked(NodeIndex dir, int error, const std::set<NodeIndex>& skipped) {
  const bool held_up = skipped.contains(dir);
  std::optional<std::chrono::milliseconds> pause;
  bool given_up = false, deep = false;
  std::vector<CompletionPtr> through;
  {
    base::MutexLock lock(mu);
    --rechecks_running;
    auto& one = rechecks.at(dir);
    one.running = false;
    deep = one.deep;
    if (error != 0 || held_up) {
      given_up = ++one.attempt >= kMaxRecheckAttempts && !held_up;
      pause = std::min<std::chrono::milliseconds>(kRelistPause * (1 << std::min(one.attempt, 8)),
                                                  kLongestRecheckPause);
    } else if (one.again) {
      one.asked = one.asked_again;
      pause = 0ms;
    }
    one.again = false;
    if (!pause || given_up) rechecks.erase(dir);
    auto oldest = ~std::uint64_t{0};
    if (!recheck_waiters.empty()) {
      for (const auto& [node, other] : rechecks) oldest = std::min(oldest, other.asked);
    }
    std::erase_if(recheck_waiters, [&](const auto& waiter) {
      if (waiter.first >= oldest && !waiter.second->ran()) return false;
      through.push_back(waiter.second);
      return true;
    });
  }
  auto others = skipped;
  others.erase(dir);
  recheck_all(others);
  if (given_up) {
    log.warn("event=not_looked_again errno=" + std::to_string(error));
    store.write([&](Mirror& mirror, Changes& changes) { mirror.distrust(dir, deep, true, changes); });
  } else if (pause) {
    later(*pause, [this, dir] {
      {
        base::MutexLock lock(mu);
        recheck_queue.push_back(dir);
      }
      recheck_step();
    });
  }
  for (const auto& one : through) barrier_told(one);
  later(0ms, [this] { recheck_step(); });
}

// ---- the barrier

void TreeStore::Impl::barrier(const CompletionPtr& whose, Deadline deadline, Passed passed) {
  if (whose->ran()) return;
  auto all = std::make_shared<Barriers>();
  all->whose = whose;
  all->deadline = deadline;
  std::vector<std::uint32_t> roots;
  bool unwatched = false, soon = false;
  {
    base::MutexLock lock(mu);
    if (run) {  // what the mirror says is being proven
      run->after.push_back([this, whose, deadline, passed] { barrier(whose, deadline, passed); });
      return;
    }
    all->instance = instance;
    for (const auto& [path, subtree] : subtrees) {
      if (!subtree.watch_asked) {
        soon = true;
      } else if (subtree.watched(generation)) {
        roots.push_back(subtree.watch_root);
      } else {
        unwatched = true;
      }
    }
  }
  if (soon) return later(kRetryPause, [this, whose, deadline, passed] { barrier(whose, deadline, passed); });
  if (unwatched) {
    const auto scanned = completion(
        [this, whose](int error) { error != 0 ? finish(whose, error) : barrier_rechecked(whose); }, deadline);
    return rescan({scanned});
  }
  if (roots.empty()) return barrier_rechecked(whose);
  if (passed.seq != 0 && passed.instance == all->instance) {
    all->seq = passed.seq;
    return await_events(all);
  }
  all->left = roots.size();
  if (const auto at = events->position(); at.instance == all->instance) all->handled = at.handled;
  for (const auto root : roots) {
    unary(wire::Method::kBarrier, wire::encode(wire::Barrier{root}), deadline,
          [this, all](int error, wire::ByteView payload) { barrier_answered(all, error, payload); });
  }
}

void TreeStore::Impl::barrier_answered(const std::shared_ptr<Barriers>& all, int error,
                                       wire::ByteView payload) {
  const auto reply = error == 0 ? wire::decode<wire::BarrierReply>(payload) : std::nullopt;
  if (error == 0 && !reply) error = EPROTO;
  {
    base::MutexLock lock(mu);
    if (all->error == 0) all->error = error;
    if (reply) all->seq = std::max(all->seq, reply->seq);
    if (reply && reply->seq < all->handled && all->error == 0) all->error = ESTALE;
    if (--all->left != 0) return;
    error = all->error;
  }
  if (error == ESTALE) {  // it has not yet told what we know: an older state of the agent, or a copy
    log.warn("event=agent_went_back action=new_session");
    link.renew_session();
    return later(kRetryPause, [this, all] { barrier_handled(all, ECONNRESET); });
  }
  error != 0 ? barrier_handled(all, error) : await_events(all);
}

void TreeStore::Impl::await_events(const std::shared_ptr<Barriers>& all) {
  events->when_handled(all->instance, all->seq, [this, weak = weak_from_this(), all](int failed) {
    const auto impl = weak.lock();
    if (!impl) return;
    if (const Use use(*impl); use) barrier_handled(all, failed);
  });
}

void TreeStore::Impl::barrier_handled(const std::shared_ptr<Barriers>& all, int error) {
  const auto& whose = all->whose;
  if (error == ECONNRESET && Clock::now() < all->deadline) {  // another agent: proven by a scan
    return later(kRetryPause, [this, all] { barrier(all->whose, all->deadline, {}); });
  }
  error != 0 ? finish(whose, error) : barrier_rechecked(whose);
}

void TreeStore::Impl::barrier_rechecked(const CompletionPtr& whose) {
  {
    base::MutexLock lock(mu);
    if (!rechecks.empty()) {
      recheck_waiters.emplace_back(recheck_count, whose);
      return;
    }
  }
  barrier_told(whose);
}

// All that was made is told to the listeners when it runs.
void TreeStore::Impl::barrier_told(const CompletionPtr& whose) {
  {
    base::MutexLock lock(tell_mu);
    if (told_until < queued) {
      tell_waiters.emplace_back(queued, whose);
      return;
    }
  }
  finish_soon(whose, 0);
}

}  // namespace nearbox::sync
