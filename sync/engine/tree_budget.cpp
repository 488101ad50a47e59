// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>

#include "client/base/fault.h"
#include "sync/engine/tree_store_impl.h"

// A tree of more names than may be held: by the directories that are looked into.
namespace nearbox::sync {

using namespace std::chrono_literals;

void TreeStore::Impl::go_by_directory() {
  if (by_directory.exchange(true)) return;
  log.info("event=tree_by_directory budget=" + std::to_string(budget));
}

// Ends a walk over a whole subtree: what came stays, the other directories are listed when they are needed.
void TreeStore::Impl::enough(Walk& one) {
  one.full = true;
  go_by_directory();
  api::CallToken token = 0;
  {
    base::MutexLock lock(mu);
    if (const auto found = calls.find(one.id); found != calls.end()) token = found->second;
  }
  if (token != 0) link.cancel(token);  // else with the next chunk
}

void TreeStore::Impl::distrust_below(const std::string& path) {
  store.write([&](Mirror& mirror, Changes& changes) {
    const auto top = mirror.walk(Mirror::kRoot, path);
    if (top == kNoNode) return;
    told_lost(top, true);  // walks that run may have been there before
    mirror.distrust(top, true, false, changes);
  });
}

void TreeStore::Impl::shrink_soon(std::chrono::milliseconds pause) {
  later(pause, [this] { shrink(); });
}

// The newest directories stay, however large: nothing is done before another one is expanded.
bool TreeStore::Impl::may_shrink(const Mirror& mirror) const {
  return mirror.expanded_names() > budget && mirror.expanded_dirs() > kNewestKept;
}

// One slice of a pass over the directories that had names when the pass began. Each is looked at once: what
// was looked into since the last pass stays for this one.
void TreeStore::Impl::shrink() {
  const auto most = budget.load();
  const auto down_to = most - most / 8;
  std::set<NodeIndex> listed;
  {
    base::MutexLock lock(mu);
    listed = listing_alone;
    for (const auto& [dir, wait] : dir_waits) listed.insert(dir);
    for (const auto& [dir, one] : rechecks) {
      if (one.running) listed.insert(dir);
    }
  }
  const auto keep = [&](NodeIndex dir) {
    if (listed.contains(dir)) return true;
    base::MutexLock lock(ops_mu);
    const auto found = operations.find(dir);
    return found != operations.end() && found->second.under_way > 0;
  };
  const bool told_nothing = base::fault::active("sync.no_collapse_inval");
  bool collapsed = false;
  std::optional<std::chrono::milliseconds> next;
  store.write([&](Mirror& mirror, Changes& changes) {
    if (pass.left == 0 && !pass.unfinished) {
      pass = {};
      pass.left = mirror.expanded_dirs() - std::min(mirror.expanded_dirs(), kNewestKept);
    }
    const auto examine = std::min(pass.left, kExamineAtOnce);
    const auto did = mirror.collapse_oldest(down_to, {examine, kDropAtOnce}, keep, changes);
    pass.left -= did.examined;
    pass.unfinished = did.unfinished;
    if (did.examined < examine && !did.unfinished) pass.left = 0;  // there are no more, or it is enough
    collapsed_dirs += did.dirs;
    collapsed = did.dirs != 0;
    if (mirror.expanded_names() <= down_to) pass.left = 0;
    if (pass.left != 0 || pass.unfinished) {
      next = 0ms;
    } else if (may_shrink(mirror)) {
      next = kSparedPause;
    } else {
      shrinking = false;  // the next that adds a name looks again
    }
    if (!told_nothing) return;
    std::erase_if(changes, [](const Change& change) { return change.kind == Change::Kind::kListing; });
  });
  if (collapsed) go_by_directory();
  if (next) shrink_soon(*next);
}

void TreeStore::Impl::ask_back_soon(std::chrono::milliseconds pause) {
  later(pause, [this] { ask_back(); });
}

// Kernels let go of what nobody uses when they are told: at the collapse, but not of what was in use then, or
// was too much at once. So they are told again, for as long as what they hold is over the budget.
void TreeStore::Impl::ask_back() {
  auto pause = kAskPause;
  const bool over = store.write([&](Mirror& mirror, Changes& changes) {
    const auto names = mirror.name_count();
    if (names <= budget) {
      asked_back = {};
      asking_back = false;  // the next that adds a name looks again
      return false;
    }
    asked_back.at = mirror.tell_unneeded(asked_back.at, kAskedOfAtOnce, kAskedAtOnce, changes);
    if (asked_back.at != kNoNode) return true;
    const bool helps = names < asked_back.names || asked_back.pause == 0ms;
    asked_back.pause = pause = helps ? kAskAgainPause : std::min(2 * asked_back.pause, kLongestAskAgainPause);
    asked_back.names = names;
    return true;
  });
  if (over) ask_back_soon(pause);
}

// ---- the public face

void TreeStore::set_budget(std::size_t names) {
  impl_->budget = std::clamp<std::size_t>(names, 1, Mirror::kMaxNames);
}

TreeStore::TreeStatus TreeStore::tree_status() const {
  TreeStatus status;
  status.by_directory = impl_->by_directory;
  status.budget = impl_->budget;
  status.collapsed = impl_->collapsed_dirs;
  read([&](const Mirror& mirror) {
    status.names = mirror.name_count();
    status.nodes = mirror.node_count();
    status.memory_bytes = mirror.memory_bytes();
    status.pinned = mirror.pinned_count();
  });
  return status;
}

}  // namespace nearbox::sync
