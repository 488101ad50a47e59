// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "client/wire/push.h"
#include "sync/index/index.h"
#include "sync/push/options.h"
#include "sync/scan/scan.h"

namespace nearbox::push {

inline constexpr std::uint64_t kMinCopyBytes = 4096;  // smaller files are sent: naming a source costs as much
inline constexpr double kTreeMoveShare = 0.5;         // of a directory's entries that must be found again

// One thing to be done in the sandbox.
struct Action {
  wire::PushKind kind = wire::PushKind::kFile;
  wire::PushExpect expect = wire::PushExpect::kAbsent;
  wire::PushConflict conflict = wire::PushConflict::kKeepBoth;
  std::string path;
  std::string source;  // of a rename or copy; a symlink's target
  index::Entry now;    // what the baseline shall have afterwards
  std::optional<index::Entry> before;
};

// A directory that moves, with what the baseline has below it.
struct TreeMove {
  std::string from, to;
  // Entries of the baseline below `from`, and at it, as they are to be recorded below `to`.
  std::vector<std::pair<std::string, index::Entry>> entries;  // path below `to`; "" is itself
};

// What a push does, in this order. Within `trees` and `moves` one after the other; the others in any order,
// `remove_dirs` deepest first.
struct Plan {
  std::vector<TreeMove> trees;
  std::vector<Action> moves;        // renames and copies
  std::vector<Action> deletes;      // files and symlinks
  std::vector<Action> remove_dirs;  // deepest first
  std::vector<Action> contents;     // files and symlinks
  std::vector<Action> directories;  // parents first
  std::vector<std::string> forget;  // leave the baseline, not the sandbox
  bool empty() const {
    return trees.empty() && moves.empty() && deletes.empty() && remove_dirs.empty() && contents.empty() &&
           directories.empty();
  }
};

// A path of the baseline whose state in the sandbox is another one than recorded.
struct Drift {
  wire::PushSeen seen = wire::PushSeen::kMissing;
  index::Entry entry;
};

// Files of the baseline that did not change, by content: where copies may come from.
using Sources = std::unordered_map<std::string, std::string>;  // digest's bytes → path
std::string key_of(const index::Digest& digest);
// Which digests are worth looking for.
std::vector<std::string> wanted_sources(const std::vector<scan::Change>& changes);

// Decides. Pure: takes the changes as the scan found them.
Plan make_plan(std::vector<scan::Change> changes, const Sources& sources, const Options& options);

// moves.cpp: takes moved directories out of the changes, and says what is left to be done below them.
std::vector<TreeMove> find_tree_moves(std::vector<scan::Change>& changes);

wire::PushConflict conflict_of(Conflicts policy);
wire::Digest wire_digest(const index::Digest& digest);
// The entry of a batch, without its data.
wire::PushEntry entry_of(const Action& action);

// The zstd level that keeps a link of this speed busy (bytes a second; 0: not known yet).
int level_for(double bytes_per_second);

}  // namespace nearbox::push
