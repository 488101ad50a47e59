// SPDX-License-Identifier: Apache-2.0
#include <cerrno>

#include "tools/agent/watch/watcher_impl.h"

// Directories that are told as a whole, since too much happens in them.
namespace nearbox::agent {

// True: nothing is left to look at by name.
bool Watcher::Sink::in_storm(const Hint& hint) {
  const bool whole = hint.dir == wire::NodeId{} || hint.name.empty();
  if (whole || (hint.flags & kHintAtOnce) != 0) return false;  // directories move name by name
  if (!w_.storms_.covers(hint.dir)) {
    const auto limit = w_.limits_.names_per_dir;
    const bool crowded = everything_ || w_.names_.waiting_in(hint.dir) >= limit;
    if (!crowded || !begin_storm(hint.dir, hint.place)) return false;
  }
  std::vector<std::string> targets;
  if (!hint.target.empty()) targets.emplace_back(hint.target);
  return count_now({hint.dir, std::string(hint.name), hint.flags, std::move(targets), hint.place});
}

bool Watcher::Sink::begin_storm(wire::NodeId dir, const HandleRef& place) {
  if (!w_.storms_.begin(dir, place, now_)) return false;
  w_.log_.info("event=watch_storm names=" + std::to_string(w_.names_.waiting_in(dir)));
  for (auto& item : w_.names_.take_dir(dir)) {
    if (!item.name.empty() && (item.flags & kHintAtOnce) == 0 && count_now(item)) continue;
    const auto add = [&](std::string_view target) {
      if (!w_.names_.add({dir, item.name, item.flags, target, item.place}, now_)) overflow("too many names");
    };
    if (item.targets.empty()) add({});
    for (const auto& target : item.targets) add(target);
  }
  return true;
}

// Versions cannot wait: whoever reads the directory again must find them. False: it is a new directory.
bool Watcher::Sink::count_now(const Coalescer::Item& item) {
  w_.storms_.note(item.dir, now_);
  const bool born = (item.flags & kHintBorn) != 0;
  if (!born && (item.flags & kHintContent) == 0) return true;
  TreeViews views(w_.fanotify_.get(), w_.inotify_.get());
  for (const auto& target : item.targets) {
    if (const auto st = views.target(target)) w_.versions_.bump(node_of(*st));
  }
  if (!born && !item.targets.empty()) return true;
  if (dir_ != item.dir) {
    views.recall(item.dir, item.place);
    fd_ = views.open_dir(item.dir);
    dir_ = item.dir;
  }
  if (!fd_ || !w_.looker_.may_look(fd_.get(), item.name)) return true;
  const auto st = stat_at(fd_.get(), item.name.c_str());
  if (!st) return true;
  if (S_ISDIR(st->st_mode) && (item.flags & kHintFresh) != 0) return false;
  w_.versions_.bump(node_of(*st));
  return true;
}

void Watcher::tell_storms(bool all) {
  for (const auto& due : storms_.take(Clock::now(), all)) {
    TreeViews views(fanotify_.get(), inotify_.get());
    views.recall(due.dir, due.place);
    errno = 0;
    const auto fd = views.open_dir(due.dir);
    if (!fd && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
      overflowed_ = true;
      why_lost_ = "a directory that could not be opened";
    }
    if (!fd) continue;  // gone, which is told by the directory above
    tell_lost_dirs({{path_of(fd.get()), views.roots_of(due.dir), false, false, due.dir}});
  }
}

}  // namespace nearbox::agent
