// SPDX-License-Identifier: Apache-2.0
#include "sync/push/plan.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

namespace nearbox::push {
namespace {

using index::Type;
using scan::Change;
using scan::ChangeKind;
using wire::PushExpect;
using wire::PushKind;

bool is_file(const index::Entry& entry) { return entry.stat.type == Type::kFile; }
bool is_directory(const index::Entry& entry) { return entry.stat.type == Type::kDirectory; }

std::string_view name_in(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

Action action_of(PushKind kind, const Change& change, const Options& options) {
  Action action;
  action.kind = kind;
  action.path = change.path;
  action.source = change.target;
  action.now = change.now;
  action.conflict = conflict_of(options.conflicts);
  if (change.kind != ChangeKind::kAdded) action.before = change.before;
  if (action.before && !is_directory(*action.before)) action.expect = PushExpect::kBase;
  return action;
}

// Files that went, by content: each may be the source of one rename.
class Gone {
 public:
  explicit Gone(const std::vector<Change>& changes) {
    for (std::size_t i = 0; i < changes.size(); ++i) {
      const auto& change = changes[i];
      if (change.kind == ChangeKind::kDeleted && is_file(change.before) && change.before.stat.size > 0) {
        by_digest_[key_of(change.before.digest)].push_back(i);
      }
    }
  }
  // The one with the same name, else any.
  std::optional<std::size_t> take(const Change& added, const std::vector<Change>& changes) {
    const auto found = by_digest_.find(key_of(added.now.digest));
    if (found == by_digest_.end() || found->second.empty()) return std::nullopt;
    auto& list = found->second;
    auto best = std::find_if(list.begin(), list.end(),
                             [&](std::size_t i) { return name_in(changes[i].path) == name_in(added.path); });
    if (best == list.end()) best = list.end() - 1;
    const auto index = *best;
    list.erase(best);
    return index;
  }

 private:
  std::unordered_map<std::string, std::vector<std::size_t>> by_digest_;
};

// A path that was something and is something of another sort, a directory on one side.
bool changes_sort(const Change& change) {
  return change.kind == ChangeKind::kModified && is_directory(change.now) != is_directory(change.before);
}

void plan_removal(const Change& change, const Options& options, Plan& plan) {
  auto action = action_of(PushKind::kDelete, change, options);
  action.before = change.before;
  if (is_directory(change.before)) {
    action.kind = PushKind::kRemoveDir;
    plan.remove_dirs.push_back(std::move(action));
  } else {
    action.expect = PushExpect::kBase;
    plan.deletes.push_back(std::move(action));
  }
}

void plan_presence(Change& change, const Sources& sources, const Options& options, Plan& plan) {
  if (is_directory(change.now)) {
    plan.directories.push_back(action_of(PushKind::kDirectory, change, options));
    return;
  }
  if (change.kind == ChangeKind::kMode) {
    if (is_file(change.now)) plan.contents.push_back(action_of(PushKind::kMode, change, options));
    return;
  }
  auto action = action_of(is_file(change.now) ? PushKind::kFile : PushKind::kSymlink, change, options);
  if (change.kind == ChangeKind::kAdded && is_file(change.now) && change.now.stat.size >= kMinCopyBytes) {
    if (const auto source = sources.find(key_of(change.now.digest)); source != sources.end()) {
      action.kind = PushKind::kCopy;
      action.source = source->second;
      plan.moves.push_back(std::move(action));
      return;
    }
  }
  plan.contents.push_back(std::move(action));
}

}  // namespace

std::string key_of(const index::Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

std::vector<std::string> wanted_sources(const std::vector<Change>& changes) {
  std::vector<std::string> out;
  for (const auto& change : changes) {
    if (change.kind == ChangeKind::kAdded && is_file(change.now) && change.now.stat.size >= kMinCopyBytes) {
      out.push_back(key_of(change.now.digest));
    }
  }
  return out;
}

wire::Digest wire_digest(const index::Digest& digest) {
  wire::Digest out;
  static_assert(sizeof out == sizeof digest);
  std::memcpy(out.data(), digest.data(), out.size());
  return out;
}

wire::PushConflict conflict_of(Conflicts policy) {
  switch (policy) {
    case Conflicts::kKeepBoth:
      return wire::PushConflict::kKeepBoth;
    case Conflicts::kPreferLocal:
      return wire::PushConflict::kOverwrite;
    case Conflicts::kPreferRemote:
    case Conflicts::kFail:
      break;
  }
  return wire::PushConflict::kLeave;
}

wire::PushEntry entry_of(const Action& action) {
  wire::PushEntry entry;
  entry.kind = action.kind;
  entry.expect = action.expect;
  entry.conflict = action.conflict;
  entry.mode = action.now.stat.mode;
  entry.mtime_ns = action.now.stat.mtime_ns;
  entry.size = action.now.stat.size;
  entry.digest = wire_digest(action.now.digest);
  if (action.before) {
    entry.base = wire_digest(action.before->digest);
    entry.base_type =
        action.before->stat.type == Type::kSymlink ? wire::PushType::kSymlink : wire::PushType::kFile;
  }
  entry.path = action.path;
  entry.source = action.source;
  return entry;
}

int level_for(double bytes_per_second) {
  constexpr double kMega = 1e6;
  if (bytes_per_second <= 0) return 1;  // the first batches shall leave early
  if (bytes_per_second < 0.3 * kMega) return 15;
  if (bytes_per_second < 1.5 * kMega) return 9;
  if (bytes_per_second < 6 * kMega) return 5;
  if (bytes_per_second < 25 * kMega) return 3;
  return 1;
}

Plan make_plan(std::vector<Change> changes, const Sources& sources, const Options& options) {
  Plan plan;
  const bool removes = options.deletes != Deletes::kNone;
  if (removes) plan.trees = find_tree_moves(changes);
  Gone gone(changes);
  std::vector<bool> moved(changes.size());
  for (std::size_t i = 0; i < changes.size() && removes; ++i) {
    auto& change = changes[i];
    if (change.kind != ChangeKind::kAdded || !is_file(change.now) || change.now.stat.size == 0) continue;
    const auto from = gone.take(change, changes);
    if (!from) continue;
    auto action = action_of(PushKind::kRename, change, options);
    action.source = changes[*from].path;
    action.before = changes[*from].before;
    plan.moves.push_back(std::move(action));
    moved[i] = moved[*from] = true;
  }
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (moved[i]) continue;
    auto& change = changes[i];
    if (change.kind == ChangeKind::kLeftOut) {
      plan.forget.push_back(change.path);
    } else if (change.kind == ChangeKind::kDeleted) {
      if (removes) plan_removal(change, options, plan);
    } else if (changes_sort(change)) {
      if (removes) plan_removal(change, options, plan);
      change.kind = ChangeKind::kAdded;
      plan_presence(change, sources, options, plan);
    } else {
      plan_presence(change, sources, options, plan);
    }
  }
  // What lies in a directory sorts after it.
  std::reverse(plan.remove_dirs.begin(), plan.remove_dirs.end());
  return plan;
}

}  // namespace nearbox::push
