// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/wire/messages.h"
#include "client/wire/tree.h"

namespace nearbox::sync {

using NodeIndex = std::uint32_t;  // 0 is no node
inline constexpr NodeIndex kNoNode = 0;

// What the mirror knows of a directory's entries.
enum class Listing : std::uint8_t {
  kUnknown,   // never listed, or collapsed since
  kPartial,   // some blocks came, more follow
  kComplete,  // absence of a name means ENOENT
  kFailed,    // the agent could not list it: error() says why
  kStale,     // known once, and perhaps not true any more: to be listed again before it is believed
};

// What a change of the mirror means for those who show it. Filled by the mutating methods, acted
// upon after the lock is gone.
struct Change {
  enum class Kind : std::uint8_t {
    kEntry,      // (dir, name) now leads to node or nowhere, or a negative answer became wrong
    kAttr,       // attributes of node
    kData,       // content (and attributes) of node
    kListing,    // the set of names in dir
    kGone,       // node has no name any more; (dir, name) was its last. Below a directory that is
                 // gone itself it stands for the kEntry too
    kNegatives,  // absences of names in dir; where dir has a name, a kEntry of it says so as well
    kUnneeded,   // nothing here but those who show it needs node, named (dir, name): they may let go of it
    kAll,        // nothing that was shown is to be believed any more
  };
  Kind kind{};
  NodeIndex node = kNoNode;
  NodeIndex dir = kNoNode;
  std::string name;
  bool absent = false;  // kEntry: the name led nowhere before
};
using Changes = std::vector<Change>;

// What was told by events since a walk began, and is newer than what the walk says of it. Left out
// functions mean nothing.
struct Newer {
  std::function<bool(NodeIndex dir)> listing;                      // no entry of the block counts
  std::function<bool(NodeIndex dir, std::string_view name)> name;  // what it leads to, or that it is gone
  std::function<bool(NodeIndex dir)> by_name;          // `name` knows all that own operations change in it
  std::function<bool(const wire::NodeId& node)> attr;  // attributes and content
  std::function<void(NodeIndex dir)> unsure;           // look at this directory again
};

// The sandbox's tree in memory: nodes by (device, inode), names by (directory, name). A node is that of one
// file: where attributes of its number show another birth, it gives way to a new node.
//
// Owns:    all nodes and names; ≤ 200 bytes an entry with names of 15 bytes (tests/model measures).
// Threads: none of its own; callers hold the lock that guards it (shared for const methods,
//          exclusive for the rest): rank in docs/locking.md.
// Units:   sizes in bytes, times in ns since the epoch, `cookie` a position in a directory: never
//          reused, increasing, valid while entries come and go; 0 is before the first entry.
// A NodeIndex stays valid while the node has a name or is pinned; it is reused afterwards.
// Nothing here trusts its input: names and blocks were validated by the decoder, cycles of
// directories are refused (a directory has one parent).
class Mirror {
 public:
  Mirror();
  ~Mirror();
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

  static constexpr NodeIndex kRoot = 1;
  static constexpr std::size_t kMaxNames = 32'000'000;  // about 5 GB

  // ---- looking
  // Not one of another birth: its number was given again.
  NodeIndex find(const wire::NodeId& id) const;
  bool alive(NodeIndex node) const;  // has a name (or is the root)
  wire::Attr attr(NodeIndex node) const;
  std::string target(NodeIndex node) const;  // of a symlink
  Listing listing(NodeIndex dir) const;
  int error(NodeIndex dir) const;
  // The node a name leads to; kNoNode when the mirror has no such name (see listing()).
  NodeIndex lookup(NodeIndex dir, std::string_view name) const;
  NodeIndex parent(NodeIndex dir) const;  // of a directory; the root is its own
  // What it holds, which may be less than all, is perhaps not true any more: kStale, or it was when it
  // collapsed, or it was distrusted since.
  bool doubted(NodeIndex dir) const;
  // Whether what is known of a node may be shown: no directory that names it is doubted.
  bool proven(NodeIndex node) const;
  // The directory that is to be listed so that it is; kNoNode when it is proven.
  NodeIndex prover(NodeIndex node) const;
  // A path from the root ("" for the root itself) by any one name; nothing for a node without name.
  std::optional<std::string> path(NodeIndex node) const;
  // Follows `path` from `from` without following symlinks; kNoNode when a component is not known.
  NodeIndex walk(NodeIndex from, std::string_view path) const;
  // Calls fn(cookie, name, node) for entries after `cookie`, in order, until it returns false.
  void list(NodeIndex dir, std::uint64_t cookie,
            const std::function<bool(std::uint64_t, std::string_view, NodeIndex)>& fn) const;
  // Where `node` stands in `dir` (by one of its names there); 0 when it does not.
  std::uint64_t cookie(NodeIndex dir, NodeIndex node) const;
  // Every name of a node: fn(dir, name). Hard links have several.
  void names(NodeIndex node, const std::function<void(NodeIndex, std::string_view)>& fn) const;

  // ---- changing; each appends what changed for those who show the tree
  void set_root(const wire::Attr& attr, Changes& changes);
  // Makes `name` in `dir` lead to the node with attr's identity, replacing what it led to. A directory
  // with another name is moved. kNoNode when refused: no such directory, a cycle, a bad length.
  NodeIndex link(NodeIndex dir, std::string_view name, const wire::Attr& attr, std::string_view target,
                 Changes& changes);
  void unlink(NodeIndex dir, std::string_view name, Changes& changes);
  void rename(NodeIndex dir, std::string_view name, NodeIndex dir2, std::string_view name2, bool exchange,
              Changes& changes);
  // New attributes of a node; kData when size, mtime or version say that content may differ (for a
  // directory always kAttr). Ignored when attr is of another identity or file type.
  void set_attr(NodeIndex node, const wire::Attr& attr, Changes& changes);
  void set_listing(NodeIndex dir, Listing listing, int error = 0);
  // Another file has the node's number by now: it loses its names, and what else the directories that had
  // them hold is kStale. link() and apply_block() do so by themselves.
  void supersede(NodeIndex node, Changes& changes);

  // Forgets everything below `dir`, whose listing comes now (kPartial).
  void begin_listing(NodeIndex dir, Changes& changes);
  // Another agent counts from now on: its versions say nothing beside those that are known.
  void forget_versions();
  // What is known of the entries of `dir`, with `recursive` of everything below it, may be out of date:
  // kStale, or doubted where it was not all that it holds; with `content` the files' bytes too. Tells kAll
  // when very much is concerned.
  void distrust(NodeIndex dir, bool recursive, bool content, Changes& changes);

  // One block of a tree stream below `base`: adds and updates entries; with the last block of a
  // directory, names it did not contain are removed. Blocks of a directory whose parents are not
  // known are dropped (the next scan brings them). Directories for which `skip` says true keep their
  // present entries (own operations are pending there): none is removed or led elsewhere, attributes
  // go forward by ctime only, and names are added only while the listing is not yet complete. So do the
  // attributes of other entries for which it says true. Where Newer::by_name says true, just those names keep
  // what they lead to.
  // `scan` tells streams apart that may hold parts of the same directory at the same time. What `newer`
  // names keeps the state it has; with it, a directory that is not at its path is found by its identity.
  void apply_block(NodeIndex base, const wire::TreeBlock& block, Changes& changes,
                   const std::function<bool(NodeIndex node)>& skip = {}, std::uint64_t scan = 0,
                   const Newer* newer = nullptr);
  // Calls fn, with the lock held, for each directory whose entries went because it lost its name: told names
  // of it went too, so what is said of it from before has to be looked at again. Set once, before use.
  void on_emptied(std::function<void(const wire::NodeId& dir)> fn);
  // Forgets the unfinished directories of a stream that ended early.
  void end_scan(std::uint64_t scan);

  // ---- a bound for the number of names
  // A directory collapses: its names go, but for those that lead to a pinned node or to a directory that has
  // names itself, and it is kUnknown, doubted if it was. Whoever looks into it has it listed again; names
  // come back with the cookies they had, for readers who stand among them (unless very many went since). What
  // is kept stays findable, by events too, until its pins are gone; then it goes as well, and so does an
  // unpinned directory without names in a collapsed one. What a pinned directory's listing was is told to be
  // forgotten, and of what is kept for its pins alone, that it is not needed. Nothing else need be told: what
  // no pin holds nobody shows, and a name that turns up in a collapsed directory is told as one that was
  // absent. That a name went which is not known here the caller has to tell. False when it is being listed in
  // several blocks.
  bool collapse(NodeIndex dir, Changes& changes);
  struct Collapsed {
    std::size_t examined = 0, spared = 0, dirs = 0, names = 0;
    bool unfinished = false;  // so many names went that the rest waits for the next call
  };
  struct AtOnce {
    std::size_t dirs = 0, names = 0;
  };
  // Collapses directories, the least recently expanded first, until at most `down_to` names are left in those
  // that are not collapsed, or so many were looked at. What goes of one that is huge goes over several calls:
  // meanwhile it is collapsed, and the rest is as what is kept. Spared, and the newest afterwards, are those
  // that were looked into since they were last examined, and those to `keep`.
  Collapsed collapse_oldest(std::size_t down_to, AtOnce at_once,
                            const std::function<bool(NodeIndex dir)>& keep, Changes& changes);
  // Tells kUnneeded once more of pinned nodes that have names in collapsed directories and nothing below
  // them. Looks at `examine` nodes from `from` on (kNoNode: the first), fewer when `most` changes were told,
  // and returns where to go on, kNoNode after the last.
  NodeIndex tell_unneeded(NodeIndex from, std::size_t examine, std::size_t most, Changes& changes) const;
  bool collapsed(NodeIndex dir) const;  // and not listed since
  std::size_t expanded_dirs() const;    // that have names and may collapse
  std::size_t expanded_names() const;   // in them
  std::size_t pinned_count() const;     // nodes
  // Changes that come of unpin(): to be told with others.
  void take_late(Changes& changes);

  // ---- references of those who show the tree
  void pin(NodeIndex node, std::uint64_t count = 1);
  void unpin(NodeIndex node, std::uint64_t count = 1);  // a nameless node goes with its last pin

  std::size_t node_count() const;
  std::size_t name_count() const;
  std::size_t memory_bytes() const;  // heap held, slack included

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nearbox::sync
