// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <thread>
#include <unordered_map>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/wire/tree.h"
#include "tools/agent/mounts.h"
#include "tools/agent/roots.h"
#include "tools/agent/watch/mount_probe.h"

namespace nearbox::agent {

inline constexpr std::size_t kWalkThreads = 2;
inline constexpr std::size_t kMaxWalkQueued = 512 * 1024;        // directories waiting
inline constexpr std::size_t kMaxBlocksBytes = 4 * 1024 * 1024;  // listed, not taken yet (estimate)
inline constexpr std::size_t kBlockBytes = 192 * 1024;  // of one block (estimate), below kMaxTreeBlock

// Lists a tree with two threads, breadth first, directories asked for by hurry() before others.
//
// Owns:    its threads, joined by the destructor, and the blocks not taken yet.
// Threads: next() from one thread at a time; hurry() and stop() from any.
// Bounds:  kMaxBlocksBytes of blocks: full, the listing waits for next(). kMaxWalkQueued directories:
//          from a quarter of it on the walk goes depth first, past it directories stay unexpanded.
// Entries that vanish during the walk are left out; directories that cannot be listed say why.
class TreeWalk {
 public:
  struct Counts {
    std::uint64_t entries = 0;
    std::uint64_t directories = 0;
    bool truncated = false;
  };
  struct Item {
    wire::TreeBlock block;
    bool urgent = false;  // somebody waits for it
  };
  enum class Next { kItem, kTimeout, kEnd };

  // Errors: of opening the start: ENOENT, ENOTDIR, ELOOP …
  // `probe`: asks foreign file systems whether they answer; one that does not is shown as an empty directory.
  static base::Result<std::unique_ptr<TreeWalk>> start(RootPtr root, const wire::Tree& request,
                                                       MountProbe* probe = nullptr,
                                                       RootTable* roots = nullptr);
  ~TreeWalk();
  TreeWalk(const TreeWalk&) = delete;
  TreeWalk& operator=(const TreeWalk&) = delete;

  Next next(Item& out, std::chrono::steady_clock::time_point deadline) EXCLUDES(mu_);
  void hurry(std::string_view path) EXCLUDES(mu_);
  void stop() EXCLUDES(mu_);
  Counts counts() EXCLUDES(mu_);

 private:
  struct Dir {
    std::string path;
    std::uint64_t parent_dev = 0;
    std::uint32_t level = 0;
    bool start = false;
    bool own_mount = false;
    bool urgent = false;
  };
  TreeWalk(RootPtr root, const wire::Tree& request, MountProbe* probe, RootTable* roots);

  void walk() noexcept;
  bool take_dir(Dir& out) EXCLUDES(mu_);
  void dir_done() EXCLUDES(mu_);
  void expand(const Dir& dir);
  void list(const Dir& dir, base::UniqueFd fd, wire::TreeBlock head);
  bool read_entry(int fd, const std::string& name, const Dir& dir, wire::TreeEntry& out, bool& own);
  bool silent(const std::string& path) const;
  bool may_expand(const Dir& dir) EXCLUDES(mu_);
  void queue_dirs(std::vector<Dir> dirs) EXCLUDES(mu_);
  void queue_locked(Dir dir) REQUIRES(mu_);
  bool wanted_locked(std::string_view path) REQUIRES(mu_);
  bool emit(wire::TreeBlock block, bool urgent) EXCLUDES(mu_);
  std::string absolute(const std::string& path) const;

  const RootPtr root_;
  const wire::Tree request_;
  const MountTable mounts_;
  MountProbe* const probe_;
  RootTable* const roots_;  // where versions count; null: everywhere
  base::Mutex mu_;          // rank: leaf
  base::CondVar changed_;
  std::list<Dir> dirs_ GUARDED_BY(mu_);
  std::unordered_map<std::string_view, std::list<Dir>::iterator> by_path_ GUARDED_BY(mu_);
  std::deque<std::string> hurried_ GUARDED_BY(mu_);
  std::deque<std::pair<Item, std::size_t>> blocks_ GUARDED_BY(mu_);
  std::size_t block_bytes_ GUARDED_BY(mu_) = 0;
  std::size_t busy_ GUARDED_BY(mu_) = 0;  // walkers at work on a directory
  Counts counts_ GUARDED_BY(mu_);
  bool stopped_ GUARDED_BY(mu_) = false;
  std::vector<std::jthread> threads_;
};

}  // namespace nearbox::agent
