// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <chrono>
#include <map>
#include <set>
#include <sys/fanotify.h>
#include <unordered_map>
#include <vector>

#include "tools/agent/watch/dir_table.h"
#include "tools/agent/watch/node_hash.h"
#include "tools/agent/watch/source.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxFileSystems = 64;
inline constexpr std::size_t kMaxLevels = 2048;  // PATH_MAX allows no deeper directory
inline constexpr std::size_t kReadBuffer = 128 * 1024;
inline constexpr std::chrono::milliseconds kPairWithin{100};  // MOVED_FROM and its MOVED_TO

// Whole file systems by fanotify: those that roots live on and those mounted below them.
//
// Events name directories by file handle. Which root a directory is below follows from the directories
// above it, which are remembered by node; a rename makes one of them be looked up again.
//
// Source:  fanotify(7), fanotify_init(2), fanotify_mark(2); linux v6.1 fs/notify/fanotify. Observed on
//          6.18: events of different processes are never merged, so that own ones can be left out.
// Errors:  add_root(): EPERM without CAP_SYS_ADMIN or CAP_DAC_READ_SEARCH; ENODEV, EOPNOTSUPP, EXDEV on
//          file systems without handles or an identity (overlayfs, FUSE, btrfs subvolumes).
class FanotifySource final : public WatchSource {
 public:
  FanotifySource(base::UniqueFd group, bool targets, std::size_t max_dirs);

  wire::WatchKind kind() const override { return wire::WatchKind::kFanotify; }
  int fd() const override { return group_.get(); }
  base::Result<void> add_root(const RootPtr& root, std::size_t index, HintSink& sink) override;
  void set_mounts(const MountTable& mounts) override;
  base::Result<void> add_mount(const RootPtr& root, const std::string& path) override;
  void remove_root(std::size_t index) override;
  std::uint64_t directories() const override { return 0; }
  std::size_t read(HintSink& sink) override;
  std::size_t queued() override;
  void recall(wire::NodeId dir, const HandleRef& place) override;
  HandleRef place_of(wire::NodeId dir) override;
  base::UniqueFd open_dir(wire::NodeId dir) override;
  RootSet roots_of(wire::NodeId dir) override;
  std::optional<Stat> target(std::string_view handle) override;
  bool names(std::string_view handle, wire::NodeId node) const override;
  void entered(int fd, wire::NodeId dir, wire::NodeId parent, std::string_view name) override;

 private:
  using Fsid = std::array<char, sizeof(fsid_t)>;
  // Reached through a root on it, else through what is mounted: no descriptor is kept there, or nobody could
  // unmount it.
  struct Fs {
    dev_t dev = 0;
    Fsid fsid{};
    std::set<std::string> points;
  };
  struct WatchedRoot {
    wire::NodeId node;
    dev_t dev = 0;
    base::UniqueFd dir = base::UniqueFd();  // not O_PATH: open_by_handle_at() takes no such descriptor
  };
  struct Above {  // of what is mounted
    wire::NodeId node;
    wire::NodeId parent;
  };
  using Dir = DirTable::Dir;
  struct Place {
    std::string dir;        // key; empty: none
    std::string_view name;  // in the buffer
  };
  struct Records {
    Place from;  // the place of the event
    Place to;    // the new one of a rename
    std::string target;
  };

  base::Result<void> mark(int dir, const std::string& point);
  std::uint64_t mask() const;
  bool rooted(dev_t dev) const;
  base::UniqueFd open_on(const Fs& fs) const;
  base::UniqueFd open_handle(const std::string& key, int flags) const;
  Dir* dir_of_fd(int fd);
  Dir* dir_of_key(const std::string& key);
  wire::NodeId parent_of(const Dir& dir);
  static Records parse(const char* at, const char* end);
  void take(const struct fanotify_event_metadata& event, const Records& records, HintSink& sink);
  void moved(const Records& records);
  void renamed(const Records& records, bool directory, HintSink& sink);
  std::uint32_t moved_to(const RootSet& roots, bool directory, std::int32_t pid);

  const base::UniqueFd group_;
  const bool targets_;  // FAN_RENAME and handles of what changed
  const std::int32_t self_;
  std::vector<char> buffer_;
  std::vector<std::unique_ptr<Fs>> file_systems_;
  DirTable dirs_;
  std::vector<WatchedRoot> roots_;        // by index
  std::map<std::string, Above> mounted_;  // by place; what a bind mount shows has two directories above it
  std::unordered_map<wire::NodeId, RootSet, NodeHash> root_nodes_;
  std::uint32_t generation_ = 0;      // moves of directories that could not be told
  std::int32_t moved_from_pid_ = -1;  // who moved a directory away last, and below which roots
  RootSet moved_from_roots_;
  std::chrono::steady_clock::time_point moved_from_until_{};
};

}  // namespace nearbox::agent
