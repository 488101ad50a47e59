// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bitset>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <sys/stat.h>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/changes.h"
#include "tools/agent/mounts.h"
#include "tools/agent/node_stat.h"
#include "tools/agent/roots.h"
#include "tools/agent/watch/dir_table.h"
#include "tools/agent/watch/hint.h"
#include "tools/agent/watch/own_writes.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxWatchedRoots = 256;  // different directories, of all sessions
using RootSet = std::bitset<kMaxWatchedRoots>;

// Takes what a source reads.
class HintSink {
 public:
  virtual ~HintSink() = default;
  virtual void hint(const Hint& hint) = 0;
  // The kernel dropped events, or the source cannot tell any more what it should.
  virtual void overflow(const char* why) = 0;
  // A root may be gone.
  virtual void check_roots() = 0;
  // Whether the clients were not told yet of the directory that had this name until now.
  virtual bool untold(wire::NodeId dir, std::string_view name, std::string_view target) = 0;
};

// What a look needs of the trees that are watched.
//
// Threads: one.
class TreeView {
 public:
  virtual ~TreeView() = default;
  // A name could not be looked at, since this agent may not search its directory: it may some day.
  virtual void hidden() {}
  // The directory of a hint, if the source knows it no more.
  virtual void recall(wire::NodeId /*dir*/, const HandleRef& /*place*/) {}
  // That of a directory the source knows, for a hint.
  virtual HandleRef place_of(wire::NodeId /*dir*/) { return {}; }
  // O_PATH; empty when the directory is gone.
  virtual base::UniqueFd open_dir(wire::NodeId dir) = 0;
  virtual RootSet roots_of(wire::NodeId dir) = 0;
  // The node of a hint's target, nothing when it is gone.
  virtual std::optional<Stat> target(std::string_view handle) = 0;
  // Whether a hint's target is this node, or one of its number before it. False where that takes a look.
  virtual bool names(std::string_view /*handle*/, wire::NodeId /*node*/) const { return false; }
  // A directory is about to be listed because the clients know nothing of it: `fd` is open on it.
  virtual void entered(int fd, wire::NodeId dir, wire::NodeId parent, std::string_view name) = 0;
};

// One of the kernel's ways to watch trees.
class WatchSource : public TreeView {
 public:
  virtual wire::WatchKind kind() const = 0;
  virtual int fd() const = 0;  // readable when there are events

  // Watches the tree of a root; `index` is what roots_of() calls it.
  // Errors:  ENOTSUP, EPERM and their like: this source cannot watch there; ENOSPC: a limit.
  virtual base::Result<void> add_root(const RootPtr& root, std::size_t index, HintSink& sink) = 0;
  // What is mounted now. Foreign file systems are not touched.
  virtual void set_mounts(const MountTable& mounts) = 0;
  // Something was mounted, or is no more, at this place (absolute) below a root.
  virtual base::Result<void> add_mount(const RootPtr& root, const std::string& path) = 0;
  virtual void remove_root(std::size_t index) = 0;
  virtual std::uint64_t directories() const = 0;  // watched one by one
  // Some directories could not be watched, for a limit.
  virtual bool incomplete() const { return false; }
  // Hints at them, so that they are listed and their watches tried again. False: there are too many of them.
  virtual bool retry(HintSink& /*sink*/) { return true; }
  // Events were lost: finds directories that nobody spoke of.
  virtual void rescan() {}

  // Reads once, without waiting. The number of bytes: 0 when there was nothing.
  virtual std::size_t read(HintSink& sink) = 0;
  // The bytes read() must have given for all to be read that is queued now.
  virtual std::size_t queued() = 0;
};

// Trees that several sources watch, one within the other perhaps.
class TreeViews final : public TreeView {
 public:
  // Either may be null.
  TreeViews(WatchSource* fanotify, WatchSource* inotify) : fanotify_(fanotify), inotify_(inotify) {}
  void hidden() override;
  void recall(wire::NodeId dir, const HandleRef& place) override;
  HandleRef place_of(wire::NodeId dir) override;
  base::UniqueFd open_dir(wire::NodeId dir) override;
  RootSet roots_of(wire::NodeId dir) override;
  std::optional<Stat> target(std::string_view handle) override;
  bool names(std::string_view handle, wire::NodeId node) const override;
  void entered(int fd, wire::NodeId dir, wire::NodeId parent, std::string_view name) override;

 private:
  WatchSource* const fanotify_;
  WatchSource* const inotify_;
};

// Errors:  EPERM, ENOSYS: not for this process.
// `max_dirs`: directories whose place is remembered.
base::Result<std::unique_ptr<WatchSource>> make_fanotify_source(std::size_t max_dirs = kMaxDirs);
base::Result<std::unique_ptr<WatchSource>> make_inotify_source(OwnWrites& own);

}  // namespace nearbox::agent
