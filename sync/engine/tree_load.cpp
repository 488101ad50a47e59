// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <optional>
#include <sys/stat.h>

#include "sync/engine/tree_store_impl.h"

// What is loaded, wanted and scanned again.
namespace nearbox::sync {

// ---- loading

void TreeStore::Impl::load(const std::string& path, const CompletionPtr& known, const CompletionPtr& done) {
  enum class Way { kLoaded, kJoined, kFollow, kStart, kFull } way = Way::kStart;
  std::string above;
  bool is_known = false;
  {
    base::MutexLock lock(mu);
    for (const auto& [at, subtree] : subtrees) {
      if (!covers(at, path)) continue;
      above = at;
      way = subtree.loaded ? Way::kLoaded : at == path ? Way::kJoined : Way::kFollow;
      if (way != Way::kFollow) break;
    }
    if (way == Way::kJoined) {
      auto& subtree = subtrees.at(path);
      is_known = subtree.known;
      if (!is_known) subtree.known_waiters.push_back(known);
      subtree.done_waiters.push_back(done);
    } else if (way == Way::kStart && subtrees.size() >= kMaxSubtrees) {
      way = Way::kFull;
    } else if (way == Way::kStart) {
      auto& subtree = subtrees[path];
      subtree.known_waiters.push_back(known);
      subtree.done_waiters.push_back(done);
    }
  }
  if (way == Way::kLoaded) load_known(path, known, done);
  if (is_known) finish_soon(known, 0);
  if (way == Way::kFollow) follow(path, above, known, done);
  if (way == Way::kStart) start_subtree(path);
  if (way == Way::kFull) finish_soon(known, EAGAIN), finish_soon(done, EAGAIN);
}

void TreeStore::Impl::load_known(const std::string& path, const CompletionPtr& known,
                                 const CompletionPtr& done) {
  const auto [node, mode] = store.read([&](const Mirror& mirror) {
    const auto at = mirror.walk(Mirror::kRoot, path);
    return std::make_pair(at, mirror.attr(at).mode);
  });
  if (node == kNoNode && by_directory && !path.empty()) {
    stat_path(path, Clock::now() + kCallDeadline, [this, known, done](int error) {
      finish_soon(known, error);
      finish_soon(done, error);
    });
    return;
  }
  finish_soon(known, node == kNoNode ? ENOENT : 0);
  finish_soon(done, node == kNoNode ? ENOENT : S_ISDIR(mode) ? 0 : ENOTDIR);
}

void TreeStore::Impl::start_subtree(const std::string& path) {
  const auto deadline = Clock::now() + kStreamDeadline;
  stat_path(path, deadline, [this, path, deadline](int error) {
    if (error != 0) {
      subtree_over(path, error);
      return;
    }
    // What was listed here before was not watched.
    store.write([&](Mirror& mirror, Changes& changes) {
      mirror.distrust(mirror.walk(Mirror::kRoot, path), true, true, changes);
    });
    subtree_known(path);
    watch(path, deadline, [this, path, deadline] {
      walk(path, 0, deadline, [this, path](int ended, const std::set<NodeIndex>& skipped) {
        recheck_all(skipped);
        subtree_over(path, ended);
      });
    });
  });
}

void TreeStore::Impl::subtree_known(const std::string& path) {
  Completions waiters;
  {
    base::MutexLock lock(mu);
    auto& subtree = subtrees.at(path);
    subtree.known = true;
    waiters.swap(subtree.known_waiters);
  }
  for (const auto& one : waiters) finish_soon(one, 0);
}

void TreeStore::Impl::subtree_over(const std::string& path, int error) {
  Subtree was;
  {
    base::MutexLock lock(mu);
    const auto found = subtrees.find(path);
    if (found == subtrees.end()) return;
    was.known_waiters.swap(found->second.known_waiters);
    was.done_waiters.swap(found->second.done_waiters);
    was.after.swap(found->second.after);
    found->second.loaded = true;
    if (error != 0) subtrees.erase(found);
  }
  reask(path);
  for (const auto& one : was.known_waiters) finish_soon(one, error);
  for (const auto& one : was.done_waiters) finish_soon(one, error);
  for (const auto& fn : was.after) fn();
}

// `path` lies in a subtree that is being loaded: it is known by a question of its own, done with it.
void TreeStore::Impl::follow(const std::string& path, const std::string& above, const CompletionPtr& known,
                             const CompletionPtr& done) {
  stat_path(path, Clock::now() + kStreamDeadline, [this, path, above, known, done](int error) {
    finish_soon(known, error);
    if (error != 0) {
      finish_soon(done, error);
      return;
    }
    hurry(path);
    {
      base::MutexLock lock(mu);
      const auto found = subtrees.find(above);
      if (found != subtrees.end() && !found->second.loaded) {
        found->second.done_waiters.push_back(done);
        return;
      }
    }
    load(path, known, done);  // loaded meanwhile, or given up: then on its own
  });
}

// ---- directories that somebody waits for

void TreeStore::Impl::ask(NodeIndex dir) {
  resolve_waiters();  // its block may have come just before
  const auto path = store.read([&](const Mirror& mirror) { return mirror.path(dir); });
  if (!path || !hurry(*path)) {
    list_alone_if_waited(dir);
    return;
  }
  later(kHurryPatience, [this, dir] { list_alone_if_waited(dir); });
}

// Asks for it first in a running walk over it; false when there is none.
bool TreeStore::Impl::hurry(const std::string& path) {
  api::CallToken token = 0;
  {
    base::MutexLock lock(mu);
    for (const auto& [id, one] : walks) {
      if (one->depth == 0 && covers(one->path, path)) token = calls.contains(id) ? calls.at(id) : 0;
    }
  }
  const auto id = token == 0 ? 0 : link.wire_id(token);
  if (id == 0) return false;
  link.note(wire::Method::kTreeHurry, wire::encode(wire::TreeHurry{id, path}), api::Lane::kBulk);
  return true;
}

void TreeStore::Impl::hurry_all() {
  std::vector<NodeIndex> dirs;
  {
    base::MutexLock lock(mu);
    for (const auto& [dir, wait] : dir_waits) dirs.push_back(dir);
  }
  for (const auto dir : dirs) {
    const auto path = store.read([&](const Mirror& mirror) { return mirror.path(dir); });
    if (path) hurry(*path);
  }
}

void TreeStore::Impl::list_alone_if_waited(NodeIndex dir) {
  {
    base::MutexLock lock(mu);
    const auto found = dir_waits.find(dir);
    if (found == dir_waits.end()) return;
    std::erase_if(found->second.waiters, [](const CompletionPtr& one) { return one->ran(); });
    if (found->second.waiters.empty()) {
      dir_waits.erase(found);
      return;
    }
  }
  list_alone(dir);
}

void TreeStore::Impl::list_alone(NodeIndex dir) {
  const auto path = store.read([&](const Mirror& mirror) { return mirror.path(dir); });
  {
    base::MutexLock lock(mu);
    if (!listing_alone.insert(dir).second) return;
  }
  if (!path) {
    listed_alone(dir, ENOENT);
    return;
  }
  walk(*path, 1, Clock::now() + kCallDeadline, [this, dir](int error, const std::set<NodeIndex>& skipped) {
    if (skipped.contains(dir)) recheck_all({dir});
    listed_alone(dir, error);
  });
}

void TreeStore::Impl::listed_alone(NodeIndex dir, int error) {
  {
    base::MutexLock lock(mu);
    listing_alone.erase(dir);
  }
  resolve_waiters();
  Completions given_up;
  {
    base::MutexLock lock(mu);
    const auto found = dir_waits.find(dir);
    if (found == dir_waits.end()) return;
    // It may have been renamed or replaced while the call was under way.
    const bool moved = error == 0 || error == ENOENT || error == ENOTDIR;
    if (!moved || ++found->second.attempts >= kListAttempts) {
      given_up.swap(found->second.waiters);
      dir_waits.erase(found);
    }
  }
  if (given_up.empty()) {
    later(kRetryPause, [this, dir] { list_alone_if_waited(dir); });
  }
  for (const auto& one : given_up) finish_soon(one, error != 0 ? error : ESTALE);
}

// Answers those whose directory is complete, failed or gone.
void TreeStore::Impl::resolve_waiters() {
  std::vector<NodeIndex> dirs;
  {
    base::MutexLock lock(mu);
    for (const auto& [dir, wait] : dir_waits) dirs.push_back(dir);
  }
  if (dirs.empty()) return;
  std::vector<std::pair<NodeIndex, int>> answers;
  store.read([&](const Mirror& mirror) {
    for (const auto dir : dirs) {
      const auto listing = mirror.listing(dir);
      if (!mirror.alive(dir)) {
        answers.emplace_back(dir, ENOENT);
      } else if (listing == Listing::kComplete) {
        answers.emplace_back(dir, 0);
      } else if (listing == Listing::kFailed) {
        answers.emplace_back(dir, mirror.error(dir) != 0 ? mirror.error(dir) : EIO);
      }
    }
  });
  for (const auto& [dir, error] : answers) {
    Completions waiters;
    {
      base::MutexLock lock(mu);
      const auto found = dir_waits.find(dir);
      if (found == dir_waits.end()) continue;
      waiters.swap(found->second.waiters);
      dir_waits.erase(found);
    }
    for (const auto& one : waiters) finish_soon(one, error);
  }
}

void TreeStore::Impl::waited_may_be_gone(const Changes& changes) {
  {
    base::MutexLock lock(mu);
    if (closed || dir_waits.empty()) return;
    bool gone = false;
    for (const auto& change : changes) {
      gone = gone || (change.kind == Change::Kind::kGone && dir_waits.contains(change.node));
    }
    if (!gone) return;
  }
  later(std::chrono::milliseconds(0), [this] { resolve_waiters(); });
}

// A walk is over: who relied on it and got nothing asks alone.
void TreeStore::Impl::reask(const std::string& below) {
  std::vector<NodeIndex> dirs;
  {
    base::MutexLock lock(mu);
    for (const auto& [dir, wait] : dir_waits) {
      if (!listing_alone.contains(dir)) dirs.push_back(dir);
    }
  }
  for (const auto dir : dirs) {
    const auto path = store.read([&](const Mirror& mirror) { return mirror.path(dir); });
    if (!path || covers(below, *path)) list_alone_if_waited(dir);
  }
}

// ---- scanning again

void TreeStore::Impl::rescan(Completions waiters) {
  std::shared_ptr<Run> now;
  {
    base::MutexLock lock(mu);
    if (run) {
      run_again = true;
      next_run.insert(next_run.end(), waiters.begin(), waiters.end());
      return;
    }
    run = now = std::make_shared<Run>();
    now->waiters = std::move(waiters);
    for (const auto& [path, subtree] : subtrees) {
      const bool nested = std::any_of(now->left.begin(), now->left.end(),
                                      [&p = path](const std::string& above) { return covers(above, p); });
      if (!nested) now->left.push_back(path);
    }
  }
  run_step(now);
}

void TreeStore::Impl::run_step(const std::shared_ptr<Run>& now) {
  std::optional<std::string> path;
  std::shared_ptr<FirstLoad> load;
  {
    base::MutexLock lock(mu);
    while (!path && !load && !now->left.empty()) {
      const auto found = subtrees.find(now->left.front());
      if (found != subtrees.end() && !found->second.loaded) {
        // Its walk may have passed what changed before this run was asked for: once more after it.
        load = std::make_shared<FirstLoad>();
        load->path = found->first;
        load->heard = Clock::now();
        found->second.after.push_back([this, now, load] {
          if (!load->over.exchange(true)) run_step(now);
        });
        break;
      }
      if (found != subtrees.end()) path = found->first;
      now->left.pop_front();
    }
  }
  if (load) return wait_for_load(now, load, rescan_stall.load());
  if (!path) {
    run_over(now);
    return;
  }
  const auto step = [this, now](int error) {
    const bool vanished = error == ENOENT || error == ENOTDIR;  // the mirror says so too by now
    if (now->error == 0 && !vanished) now->error = error;
    run_step(now);
  };
  // One subtree that is not answered must not hold up the others, nor every scan after this one.
  const auto deadline = Clock::now() + kStreamDeadline;
  stat_path(*path, Clock::now() + kCallDeadline, [this, now, step, deadline, path = *path](int error) {
    if (error != 0) {
      step(error);
      return;
    }
    const auto over = [this, now, step, path](int ended, const std::set<NodeIndex>& skipped) {
      now->skipped.insert(skipped.begin(), skipped.end());
      reask(path);
      step(ended);
    };
    watch_all_below(path, [this, path, deadline, over] { rescan_subtree(path, deadline, over); });
  });
}

// By directory nothing that is known is believed before it was listed again, which is done when somebody
// looks. The top itself is listed, for what a kernel believes absent there hangs below no entry that it can
// be told of.
void TreeStore::Impl::rescan_subtree(const std::string& path, Deadline deadline, Walk::Then over) {
  if (by_directory) {
    distrust_below(path);
    return walk(path, 1, deadline, std::move(over), rescan_stall.load());
  }
  const auto ended = [this, path, deadline, over = std::move(over)](int error,
                                                                    const std::set<NodeIndex>& skipped) {
    if (error == 0 && by_directory) return rescan_subtree(path, deadline, over);  // it ended early
    over(error, skipped);
  };
  walk(path, 0, deadline, ended, rescan_stall.load());
}

// Watches the subtree at `path` and those within it that are loaded too, where they are not; one after the
// other.
void TreeStore::Impl::watch_all_below(const std::string& path, Then then) {
  std::optional<std::string> next;
  {
    base::MutexLock lock(mu);
    for (auto& [at, subtree] : subtrees) {
      if (!covers(path, at) || subtree.watched(generation) || subtree.watch_tried == generation) continue;
      if (at != path && !subtree.loaded) continue;
      subtree.watch_tried = generation;
      next = at;
      break;
    }
    if (!next) {  // those that could not be watched are tried again by the next scan
      for (auto& [at, subtree] : subtrees) {
        if (covers(path, at)) subtree.watch_tried = 0;
      }
    }
  }
  if (!next) return then();
  watch(*next, Clock::now() + kCallDeadline,
        [this, path, then = std::move(then)] { watch_all_below(path, then); });
}

// Goes on without a first load that rests, as without a subtree that is not answered; the load itself goes
// on.
void TreeStore::Impl::wait_for_load(const std::shared_ptr<Run>& now, const std::shared_ptr<FirstLoad>& load,
                                    std::chrono::milliseconds left) {
  later(left, [this, now, load] {
    if (load->over) return;
    if (!link.status().up) load->heard = Clock::now();
    {
      base::MutexLock lock(mu);
      for (const auto& [id, one] : walks) {
        if (one->depth == 0 && one->path == load->path)
          load->heard = std::max(load->heard, one->heard.load());
      }
    }
    const auto rest =
        std::chrono::ceil<std::chrono::milliseconds>(load->heard + rescan_stall.load() - Clock::now());
    if (rest.count() > 0) return wait_for_load(now, load, rest);
    if (load->over.exchange(true)) return;
    log.warn("event=first_load_stalled");
    {
      base::MutexLock lock(mu);
      if (now->error == 0) now->error = ETIMEDOUT;
      if (!now->left.empty()) now->left.pop_front();
    }
    run_step(now);
  });
}

void TreeStore::Impl::run_over(const std::shared_ptr<Run>& over) {
  if (!over->skipped.empty()) {
    relist_soon(std::exchange(over->skipped, {}), 0, [this, over] { run_over(over); });
    return;
  }
  Completions next;
  bool again = false;
  {
    base::MutexLock lock(mu);
    run.reset();
    again = std::exchange(run_again, false);
    next.swap(next_run);
  }
  for (const auto& one : over->waiters) finish_soon(one, over->error);
  for (const auto& fn : over->after) fn();
  if (again) rescan(std::move(next));
}

// Directories that kept their entries because of our own operations are listed again, a few times if
// need be; a directory that never rests waits for the next scan.
void TreeStore::Impl::relist_soon(const std::set<NodeIndex>& dirs, int attempt, std::function<void()> then) {
  auto list = std::make_shared<Relist>();
  list->left.assign(dirs.begin(), dirs.end());
  list->attempt = attempt;
  list->then = std::move(then);
  later(kRelistPause * (1 << attempt), [this, list] { relist_step(list); });
}

void TreeStore::Impl::relist_step(const std::shared_ptr<Relist>& list) {
  bool over = false;
  for (auto dir = next_to_relist(*list, over); dir != kNoNode; dir = next_to_relist(*list, over)) {
    const auto path = store.read([&](const Mirror& mirror) { return mirror.path(dir); });
    if (!path) {
      base::MutexLock lock(mu);
      --list->running;
      continue;
    }
    walk(*path, 1, Clock::now() + kCallDeadline, [this, list, dir](int, const std::set<NodeIndex>& skipped) {
      {
        base::MutexLock lock(mu);
        --list->running;
        if (skipped.contains(dir)) list->again.insert(dir);
      }
      relist_step(list);
    });
  }
  if (!over) return;
  if (!list->again.empty() && list->attempt + 1 < kRelistAttempts) {
    relist_soon(list->again, list->attempt + 1, list->then);
    return;
  }
  recheck_all(list->again);  // nobody waits for these
  if (list->then) list->then();
}

// kNoNode: as many as may be are under way, or none is left; `over`, once, when all is done.
NodeIndex TreeStore::Impl::next_to_relist(Relist& list, bool& over) {
  base::MutexLock lock(mu);
  if (list.left.empty() && list.running == 0) over = !std::exchange(list.over, true);
  if (list.left.empty() || list.running >= kRelistAtOnce) return kNoNode;
  const auto dir = list.left.front();
  list.left.pop_front();
  ++list.running;
  return dir;
}

}  // namespace nearbox::sync
