// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>
#include <set>
#include <sys/inotify.h>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "tools/agent/mounts.h"
#include "tools/agent/watch/node_hash.h"
#include "tools/agent/watch/source.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxWatches = 512 * 1024;        // the kernel's limit is usually lower
inline constexpr std::size_t kMaxDeferredHints = 256 * 1024;  // read ahead of their turn
inline constexpr std::size_t kMaxUnwatched = 1024;  // directories past the limit, without those below
inline constexpr std::chrono::milliseconds kMoveSettles{500};  // then a MOVED_FROM has no MOVED_TO

// Trees directory by directory with inotify, for where fanotify is not allowed or not possible.
//
// A directory is known by its node, the node above it and its name there; a rename changes that one
// entry. New directories are listed after their watch was set (Looker), or what is made in them
// in between is lost.
//
// Source:  inotify(7). Less is told than by fanotify: nothing of whose change it was, so that
//          operations of this agent count as changes like any other, but writes (OwnWrites); nothing of
//          writes through a name that lies outside the roots; nothing of the link count of a file that lost
//          another name.
// What lies in directories that this agent may not read is not told, until their mode says otherwise: then
// they are told as new ones.
// Bounds:  the kernel's max_user_watches or kMaxWatches; incomplete() until retry() or rescan() could watch
//          what is past it.
class InotifySource final : public WatchSource {
 public:
  InotifySource(base::UniqueFd fd, OwnWrites& own);
  ~InotifySource() override { own_.end(); }

  wire::WatchKind kind() const override { return wire::WatchKind::kInotify; }
  int fd() const override { return fd_.get(); }
  base::Result<void> add_root(const RootPtr& root, std::size_t index, HintSink& sink) override;
  void set_mounts(const MountTable& mounts) override { mounts_ = mounts; }
  base::Result<void> add_mount(const RootPtr& root, const std::string& path) override;
  void remove_root(std::size_t index) override;
  std::uint64_t directories() const override { return by_wd_.size(); }
  bool incomplete() const override { return !unwatched_.empty() || too_many_unwatched_; }
  bool retry(HintSink& sink) override;
  std::size_t read(HintSink& sink) override;
  std::size_t queued() override;
  void hidden() override { any_hidden_ = true; }
  void rescan() override;
  base::UniqueFd open_dir(wire::NodeId dir) override;
  RootSet roots_of(wire::NodeId dir) override;
  std::optional<Stat> target(std::string_view handle) override;
  void entered(int fd, wire::NodeId dir, wire::NodeId parent, std::string_view name) override;

 private:
  struct Dir {
    int wd = -1;
    wire::NodeId parent;
    std::string name;
  };
  struct Deferred {
    wire::NodeId dir;
    std::string name;
    std::uint32_t flags;
  };
  struct Move {  // of a directory that left its place
    std::uint32_t cookie;
    wire::NodeId node;
    RootSet roots;
    std::chrono::steady_clock::time_point until;
  };

  int watch(int fd, wire::NodeId node, wire::NodeId parent, std::string_view name);
  enum class AtLimit { kStop, kGoOn };
  int watch_below(const RootPtr& root, const std::string& path, AtLimit at_limit);
  void unwatched(wire::NodeId parent, std::string_view name);
  std::size_t pull();
  void take(const struct inotify_event& event, std::string_view name);
  void moved(const struct inotify_event& event, wire::NodeId dir, std::string_view name,
             std::uint32_t& flags);
  void settle_moves();
  void place(wire::NodeId node, wire::NodeId parent, std::string_view name);
  void drop(wire::NodeId node);
  void drop_outside();
  base::UniqueFd open_now(wire::NodeId dir);

  const base::UniqueFd fd_;
  OwnWrites& own_;
  std::vector<char> buffer_;
  std::unordered_map<int, wire::NodeId> by_wd_;
  std::unordered_map<wire::NodeId, Dir, NodeHash> dirs_;
  std::unordered_map<std::string, wire::NodeId> places_;  // by parent and name
  std::pair<std::string, wire::NodeId> displaced_;        // whose place was taken last: an exchange
  std::vector<RootPtr> roots_;                            // by index
  std::unordered_set<int> above_roots_;                   // watches of the parents of roots
  std::vector<Move> moves_;
  std::vector<Deferred> deferred_;
  MountTable mounts_;
  bool overflow_ = false;
  bool check_roots_ = false;
  std::set<std::pair<wire::NodeId, std::string>> unwatched_;  // the highest: their parents are watched
  bool too_many_unwatched_ = false;
  bool any_hidden_ = false;  // directories that this agent could not watch or look into
};

}  // namespace nearbox::agent
