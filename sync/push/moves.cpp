// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>

#include "sync/push/plan.h"

// Directories that were renamed. Changes are sorted by path, but "a.b" lies between "a" and "a/c": what is
// below a directory is found by its prefix.
namespace nearbox::push {
namespace {

using index::Type;
using scan::Change;
using scan::ChangeKind;

bool same_content(const index::Entry& a, const index::Entry& b) {
  return a.stat.type == b.stat.type && (a.stat.type == Type::kDirectory || a.digest == b.digest);
}

class TreeMoves {
 public:
  explicit TreeMoves(std::vector<Change>& changes) : changes_(changes) {
    for (std::size_t i = 0; i < changes.size(); ++i) {
      const auto& change = changes[i];
      if (change.kind == ChangeKind::kDeleted) {
        gone_.emplace(change.path, i);
        if (change.before.stat.type == Type::kFile) by_digest_[key_of(change.before.digest)].push_back(i);
      }
      if (change.kind == ChangeKind::kAdded) added_.emplace(change.path, i);
    }
  }

  std::vector<TreeMove> run() {
    for (const auto& [path, i] : added_) {
      if (changes_[i].now.stat.type != Type::kDirectory || inside_taken(path)) continue;
      if (const auto from = source_of(path)) try_move(*from, path);
    }
    apply();
    return std::move(moves_);
  }

 private:
  bool inside_taken(std::string_view path) const {
    return std::any_of(taken_.begin(), taken_.end(), [&](const std::string& top) {
      return path.size() > top.size() && path.starts_with(top) && path[top.size()] == '/';
    });
  }

  // The directory that the first file below `to`, which is found again, came from.
  std::optional<std::string> source_of(const std::string& to) const {
    const auto prefix = to + "/";
    int looks = 0;
    for (auto it = added_.lower_bound(prefix);
         it != added_.end() && it->first.starts_with(prefix) && looks < 32; ++it) {
      const auto& change = changes_[it->second];
      if (change.now.stat.type != Type::kFile) continue;
      ++looks;
      const auto found = by_digest_.find(key_of(change.now.digest));
      if (found == by_digest_.end()) continue;
      const auto rest = it->first.substr(to.size());
      for (std::size_t n = 0; n < found->second.size() && n < 32; ++n) {
        const auto& old = changes_[found->second[n]].path;
        if (old.size() <= rest.size() || !old.ends_with(rest)) continue;
        auto from = old.substr(0, old.size() - rest.size());
        const auto there = gone_.find(from);
        if (there != gone_.end() && changes_[there->second].before.stat.type == Type::kDirectory) return from;
      }
    }
    return std::nullopt;
  }

  void try_move(const std::string& from, const std::string& to) {
    if (inside_taken(from) || taken_.contains(from) || to.starts_with(from + "/") ||
        from.starts_with(to + "/")) {
      return;
    }
    const auto prefix = from + "/";
    TreeMove move{from, to, {}};
    std::size_t all = 0;
    std::size_t found = 0;
    const auto& top = changes_[gone_.at(from)];
    move.entries.emplace_back("", top.before);
    for (auto it = gone_.lower_bound(prefix); it != gone_.end() && it->first.starts_with(prefix); ++it) {
      const auto& old = changes_[it->second];
      auto rest = it->first.substr(prefix.size());
      ++all;
      const auto now = added_.find(to + "/" + rest);
      if (now != added_.end() && same_content(changes_[now->second].now, old.before)) ++found;
      move.entries.emplace_back(std::move(rest), old.before);
    }
    if (all == 0 || static_cast<double>(found) < static_cast<double>(all) * kTreeMoveShare) return;
    taken_.insert(from);
    taken_.insert(to);
    moves_.push_back(std::move(move));
  }

  // What is below a moved directory is compared with what moved there.
  void apply() {
    if (moves_.empty()) return;
    std::set<std::size_t> drop;
    std::vector<Change> more;
    for (auto& move : moves_) {
      for (auto& [rest, entry] : move.entries) {
        const auto old_path = rest.empty() ? move.from : move.from + "/" + rest;
        const auto new_path = rest.empty() ? move.to : move.to + "/" + rest;
        drop.insert(gone_.at(old_path));
        const auto now = added_.find(new_path);
        if (now == added_.end()) {
          Change deleted{ChangeKind::kDeleted, new_path, entry, entry, {}};
          more.push_back(std::move(deleted));
          continue;
        }
        auto& change = changes_[now->second];
        change.before = entry;
        change.kind = ChangeKind::kModified;
        if (!same_content(change.now, entry)) continue;
        if (change.now.stat.mode != entry.stat.mode && entry.stat.type != Type::kSymlink) {
          change.kind = ChangeKind::kMode;
          continue;
        }
        const auto stamp = entry.remote_version;
        entry = change.now;
        entry.remote_version = stamp;
        drop.insert(now->second);
      }
    }
    std::vector<Change> left;
    for (std::size_t i = 0; i < changes_.size(); ++i) {
      if (!drop.contains(i)) left.push_back(std::move(changes_[i]));
    }
    left.insert(left.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    std::sort(left.begin(), left.end(), [](const Change& a, const Change& b) { return a.path < b.path; });
    changes_ = std::move(left);
  }

  std::vector<Change>& changes_;
  std::map<std::string, std::size_t, std::less<>> gone_;
  std::map<std::string, std::size_t, std::less<>> added_;
  std::unordered_map<std::string, std::vector<std::size_t>> by_digest_;
  std::set<std::string> taken_;
  std::vector<TreeMove> moves_;
};

}  // namespace

std::vector<TreeMove> find_tree_moves(std::vector<Change>& changes) { return TreeMoves(changes).run(); }

}  // namespace nearbox::push
