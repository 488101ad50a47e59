// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

struct inotify_event;

namespace nearbox::sandbox_server {

// Directories below one watched root; the kernel counts them against the user, too.
inline constexpr std::size_t kMaxWatchedDirs = 65536;
// How deep a recursive watch looks.
inline constexpr std::size_t kMaxWatchDepth = 256;

enum class WatchKind { kCreate, kWrite, kRemove, kRename, kChmod };

struct WatchEvent {
  WatchKind kind = WatchKind::kCreate;
  std::string name;  // below the watched directory; "." is that itself
};

// A directory, or a tree of them, watched with inotify, reporting as envd does: a name that moves away
// is a rename, one that arrives is a creation; new directories join a recursive watch, and what they
// hold already is reported as created.
//
// Owns:    one inotify instance. Threads: one at a time.
// Errors:  open(): ENOENT, ENOTDIR, EMFILE (no instance left), ENOSPC (no watch left). read(): EOVERFLOW
//          when the kernel or our limits dropped events; nothing that follows can be trusted.
// Source:  e2b-dev/fsnotify v0.0.1, backend_inotify.go; e2b-dev/infra 54693ff,
//          packages/envd/internal/services/filesystem/watch.go.
class DirWatcher {
 public:
  enum class Depth { kFlat, kRecursive };
  static base::Result<DirWatcher> open(const std::string& root, Depth depth);
  // Readable when there are events.
  int fd() const { return fd_.get(); }
  const std::string& root() const { return root_; }
  // Takes what the kernel holds now, without waiting.
  base::Result<std::vector<WatchEvent>> read();

 private:
  DirWatcher(base::UniqueFd fd, std::string root, Depth depth)
      : fd_(std::move(fd)), root_(std::move(root)), depth_(depth) {}
  std::string path_of(const std::string& name) const;
  base::Result<void> add_tree(const std::string& top, std::vector<WatchEvent>* found);
  void take(const inotify_event& event, std::string_view name, std::vector<WatchEvent>& out);

  base::UniqueFd fd_;
  std::string root_;
  Depth depth_;
  std::unordered_map<int, std::string> names_;  // watch -> directory below the root, "" the root
};

std::string_view name_of(WatchKind kind);  // as protobuf has it

}  // namespace nearbox::sandbox_server
