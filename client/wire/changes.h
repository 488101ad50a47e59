// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "client/wire/messages.h"

// What the agent's watcher tells of a sandbox's tree. Events of the kernel are hints to look; what
// travels is the state that was seen when looking, so that a state may be told twice or be newer
// than the change that led to it, and the last one told of a name or a node holds.
namespace nearbox::wire {

// Watching the tree below a root for this session: kWatch. From `seq` on, whatever changes there is
// told by kChanged and kLost events. A walk (kTree) begun after the answer misses nothing.
struct Watch {
  std::uint32_t root = 0;
};
template <class Ar, class M>
void Watch_fields(Ar& ar, M& m) {
  ar.num(m.root);
}
NEARBOX_FIELDS(Watch)

enum class WatchKind : std::uint8_t {
  kNone = 0,      // nothing is watched: `error` says why; the client scans
  kFanotify = 1,  // the file system as a whole
  kInotify = 2,   // directory by directory
};

struct WatchReply {
  WatchKind kind = WatchKind::kNone;
  std::int32_t error = 0;         // ENOSPC: the limit of inotify watches
  std::uint64_t seq = 0;          // the newest event when the watch began
  std::uint64_t directories = 0;  // watched one by one (kInotify)
};
template <class Ar, class M>
void WatchReply_fields(Ar& ar, M& m) {
  ar.num(m.kind), ar.num(m.error), ar.num(m.seq), ar.num(m.directories);
}
NEARBOX_FIELDS(WatchReply)

// kBarrier: whatever happened below the root before the call is told in events up to `seq`.
struct Barrier {
  std::uint32_t root = 0;
};
template <class Ar, class M>
void Barrier_fields(Ar& ar, M& m) {
  ar.num(m.root);
}
NEARBOX_FIELDS(Barrier)

struct BarrierReply {
  std::uint64_t seq = 0;
};
template <class Ar, class M>
void BarrierReply_fields(Ar& ar, M& m) {
  ar.num(m.seq);
}
NEARBOX_FIELDS(BarrierReply)

// kMounts: the other file systems below the root.
struct Mounts {
  std::uint32_t root = 0;
};
template <class Ar, class M>
void Mounts_fields(Ar& ar, M& m) {
  ar.num(m.root);
}
NEARBOX_FIELDS(Mounts)

enum class MountHow : std::uint8_t {
  kWatched = 0,    // like what surrounds it
  kUnwatched = 1,  // what changes there is found by reading it again at each barrier
  kForeign = 2,    // others change it without a word: the same
  kEmpty = 3,      // of the kernel's state, or of nearbox itself: shown as an empty directory
};

struct MountBelow {
  std::string path;  // absolute
  std::string type;
  MountHow how = MountHow::kWatched;
};
template <class Ar, class M>
void MountBelow_fields(Ar& ar, M& m) {
  ar.bytes(m.path, kMaxPath), ar.bytes(m.type, kMaxName), ar.num(m.how);
}
NEARBOX_FIELDS(MountBelow)

struct MountsReply {
  std::vector<MountBelow> mounts;  // by path
  std::uint32_t left_out = 0;      // of more than kMaxMountsTold
};
template <class Ar, class M>
void MountsReply_fields(Ar& ar, M& m) {
  ar.list(m.mounts, kMaxMountsTold), ar.num(m.left_out);
}
NEARBOX_FIELDS(MountsReply)

enum NameFlags : std::uint8_t {
  kNameFresh = 1,   // a directory whose whole listing follows in states of this event and the next ones,
                    // begun empty: whatever the client had below the node is forgotten
  kNameListed = 2,  // the listing of the directory `dir` (empty name), begun by kNameFresh, is complete;
                    // a kLost event may take its place
};

// One name as it is now. `attr.version` above what the client had means other content, whatever the
// rest of the attributes says; versions of a node only grow.
//
// An empty name speaks of the node `dir` itself, of whatever type and under whatever names: its own
// attributes, or with zero ino that it is gone (a root that was removed). Nodes and directories that
// the client does not know are none of its business, with one exception: a directory that comes with
// a name and without kNameFresh, and that the client does not know, is to be read with kTree (it was
// moved within the root before the agent came to look at where it was made).
struct NameState {
  NodeId dir{};
  std::string name;
  std::uint8_t flags = 0;
  Attr attr;           // zero ino: there is no such name
  std::string target;  // of a symlink
};
template <class Ar, class M>
void NameState_fields(Ar& ar, M& m) {
  fields(ar, m.dir), ar.bytes(m.name, kMaxName), ar.num(m.flags);
  fields(ar, m.attr), ar.bytes(m.target, kMaxPath);
}
NEARBOX_FIELDS(NameState)

inline constexpr std::size_t kMaxNameStates = 1024;  // in one event; kMaxEventBytes bounds them too

// Event body of kChanged. Names that exist come before names that are gone, so that what was moved
// is found at its new place before it loses the old one.
struct Changed {
  std::uint32_t root = 0;
  std::vector<NameState> states;
};
template <class Ar, class M>
void Changed_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.list(m.states, kMaxNameStates);
}
NEARBOX_FIELDS(Changed)

// Event body of kLost: the agent no longer knows what changed there (overflow, a watch that could not
// be set, a storm): the client reads it again. Content of files there may have changed whatever their
// attributes say when `content` is set.
struct Lost {
  std::uint32_t root = 0;
  std::string path;  // of a directory
  bool recursive = true;
  bool content = false;
  NodeId dir;  // of it, where the path may not be what the client knows it by; a client that does not know
               // the node has nothing to read again
};
template <class Ar, class M>
void Lost_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), ar.num(m.recursive), ar.num(m.content);
  fields(ar, m.dir);
}
NEARBOX_FIELDS(Lost)

}  // namespace nearbox::wire
