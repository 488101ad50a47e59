// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "fs/core/sparse_array.h"
#include "sync/core/mirror.h"

namespace nearbox::fs {

using Ino = std::uint64_t;  // the number the kernel knows an inode by (FUSE "nodeid"), not st_ino
inline constexpr Ino kRootIno = 1;

// Unlinked files that a kernel may still use, over all sessions of one tree.
//
// Owns:    how many sessions hold each node, and the number by which the agent keeps its file.
// Threads: any; mu_ is a leaf.
class Orphans {
 public:
  void hold(sync::NodeIndex node) EXCLUDES(mu_);
  // The session let go. The number to give back with kOpForget when it was the last one, else 0.
  std::uint64_t release(sync::NodeIndex node) EXCLUDES(mu_);
  // The agent keeps node's file as `orphan`. False: nobody holds the node, give it back at once.
  bool keep(sync::NodeIndex node, std::uint64_t orphan) EXCLUDES(mu_);
  std::uint64_t number(sync::NodeIndex node) const EXCLUDES(mu_);  // 0: none
  // Another agent process: what the old one kept is gone.
  void clear_numbers() EXCLUDES(mu_);

 private:
  mutable base::Mutex mu_;
  SparseArray<std::uint32_t> sessions_ GUARDED_BY(mu_);  // that hold a node
  std::unordered_map<sync::NodeIndex, std::uint64_t> kept_ GUARDED_BY(mu_);
};

// The inodes one FUSE session's kernel side holds, and the mirror nodes they stand for.
//
// Owns:    lookup counts. The caller pins the mirror node when add() says it is new and unpins it when
//          forget() returns it; it calls add() under the tree's lock (shared is enough) and forget() under
//          the exclusive one, so that a node cannot go between.
// Threads: any; mu_ is taken below the tree's lock.
// Units:   lookup counts are kernel references. A number comes again after 2^32 others at the earliest. 16
// bytes an inode.
class InodeTable {
 public:
  explicit InodeTable(sync::NodeIndex root);

  struct Ref {
    Ino ino = 0;
    bool fresh = false;  // the kernel did not hold it before
  };
  // The node of an inode; kNoNode when the kernel may not know that number (any more).
  sync::NodeIndex node(Ino ino) const EXCLUDES(mu_);
  // The inode of a node; 0 when the kernel does not hold it.
  Ino ino(sync::NodeIndex node) const EXCLUDES(mu_);
  // Adds one kernel reference.
  Ref add(sync::NodeIndex node) EXCLUDES(mu_);
  // Takes back `count` references; the node when they were the last. The root is never forgotten.
  // Unknown numbers and too large counts are ignored and counted.
  std::optional<sync::NodeIndex> forget(Ino ino, std::uint64_t count) EXCLUDES(mu_);
  // All but the root, and forgets them.
  std::vector<sync::NodeIndex> clear() EXCLUDES(mu_);
  std::vector<Ino> all() const EXCLUDES(mu_);

  // Names under which the kernel was given an inode. Kept for kernels without epochs alone, which can be told
  // to forget a name only by that name. At most kMaxNames an inode: the one that is given up for a new one
  // is returned, and the kernel is to be told to forget it.
  static constexpr std::size_t kMaxNames = 64;
  using Name = std::pair<Ino, std::string>;  // in a directory
  void remember_names() EXCLUDES(mu_);       // before the first add()
  std::optional<Name> named(Ino ino, Ino parent, std::string_view name) EXCLUDES(mu_);
  std::vector<Name> names() const EXCLUDES(mu_);
  std::size_t size() const EXCLUDES(mu_);
  std::uint64_t bad_forgets() const EXCLUDES(mu_);

 private:
  // An inode's number is its node's below, and above that how many were given before it: none comes twice
  // before 2^32 others did.
  struct Entry {
    std::uint32_t turn = 0;
    std::uint64_t count = 0;  // of the kernel's references
    bool operator==(const Entry&) const = default;
  };
  static sync::NodeIndex node_of(Ino ino) { return static_cast<sync::NodeIndex>(ino); }
  static Ino number(sync::NodeIndex node, const Entry& entry) { return Ino{entry.turn} << 32 | node; }
  Entry find(Ino ino) const REQUIRES(mu_);  // of no count: the kernel may not know that number

  mutable base::Mutex mu_;
  const sync::NodeIndex root_;
  SparseArray<Entry> inodes_ GUARDED_BY(mu_);  // by node; all but the root
  std::uint32_t turn_ GUARDED_BY(mu_) = 0;
  std::unordered_map<Ino, std::vector<Name>> names_ GUARDED_BY(mu_);  // oldest first
  std::uint64_t bad_ GUARDED_BY(mu_) = 0;
  bool remember_ GUARDED_BY(mu_) = false;
};

}  // namespace nearbox::fs
