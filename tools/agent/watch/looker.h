// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "client/wire/changes.h"
#include "tools/agent/mounts.h"
#include "tools/agent/versions.h"
#include "tools/agent/watch/coalescer.h"
#include "tools/agent/watch/source.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxFreshNames = 20'000;  // of one new directory with all below it

inline constexpr std::size_t kMaxMissed = 4096;
inline constexpr std::size_t kMaxPassedOver = 4096;
inline constexpr std::size_t kMaxListed = 4096;

// What a look found, and below which roots.
struct Seen {
  wire::NameState state;
  RootSet roots;
  std::uint32_t listing = 0;  // those of one listing are told together or not at all; 0: of none
  std::uint64_t as_of = 0;    // DoneOps::now() of before the look
  bool named = false;         // the name came or went, or may be new to the clients
};

// A directory that the clients have to read by themselves.
struct LostDir {
  std::string path;  // absolute
  RootSet roots;
  bool content = false;
  bool deep = true;     // with all below it
  wire::NodeId node{};  // of it: who does not know it has nothing to read
};

// The path of an open directory, "" where /proc is not mounted.
std::string path_of(int fd);

struct Findings {
  bool for_all = true;      // who is told: everybody below the roots, or all but one
  std::vector<Seen> there;  // in the order in which they must be told
  std::vector<Seen> gone;
  std::vector<LostDir> lost;
};

// Looks at names that events spoke of, and lists directories that are new.
//
// Threads: one, the source's. Blocking system calls on the tree; no symlink is followed, and mounts of
//          nearbox itself and foreign ones are not touched.
class Looker {
 public:
  Looker(Versions& versions, Coalescer& names) : versions_(versions), names_(names) {}

  // A new directory with this handle was gone from its name when it was to be told.
  bool missed(std::string_view target) const { return missed_.count(std::string(target)) != 0; }
  void set_mounts(MountTable mounts) { mounts_ = std::move(mounts); }

  // A directory in which names are looked at: its path is read when it is first needed.
  struct Place {
    int fd = -1;
    std::optional<std::string> path{};
  };
  // Not so what nearbox itself or others have mounted.
  bool may_look(int dir, const std::string& name) const {
    Place place{dir};
    return !untouched(place, name);
  }

  // Items of one directory.
  void look(TreeView& source, std::vector<Coalescer::Item>::iterator from,
            std::vector<Coalescer::Item>::iterator to, const RootSet& every_root, Findings& out);
  // A name in an open directory, below these roots.
  void look_at(TreeView& source, Place& place, const Coalescer::Item& item, const RootSet& roots,
               Findings& out);

 private:
  struct Listing;
  struct Here {
    wire::NodeId node;         // that the name shows, if any
    std::uint64_t number = 0;  // drawn before it was looked at
  };
  void resolve_targets(TreeView& source, const Coalescer::Item& item, Here here, const RootSet& roots,
                       Findings& out);
  void list(TreeView& source, int parent, const Coalescer::Item& item, const wire::Attr& attr,
            const RootSet& roots, Findings& out);
  bool list_one(TreeView& source, Listing& listing, const std::string& path);
  bool listed_since_made(TreeView& source, const Coalescer::Item& item, wire::NodeId dir);
  void remember_listed(TreeView& source, wire::NodeId dir);
  bool untouched(Place& dir, const std::string& name) const;
  bool pseudo(const wire::Attr& attr) const { return mounts_.pseudo_device(attr.dev); }

  Versions& versions_;
  Coalescer& names_;
  MountTable mounts_;
  std::uint32_t listings_ = 0;
  std::unordered_set<std::string> missed_;  // at most kMaxMissed, then begun anew
  // Handles of files that were written and not told, since they had one name: at most kMaxPassedOver, as
  // above.
  std::unordered_set<std::string> passed_over_;
  std::unordered_set<std::string>
      listed_;  // handles of directories in new ones; at most kMaxListed, as above
};

}  // namespace nearbox::agent
