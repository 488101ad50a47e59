// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/wire/codec.h"
#include "client/wire/digest.h"
#include "client/wire/limits.h"

// What a sync sends to the sandbox (docs/sync.md). All of it may come twice: what was applied before says so.
namespace nearbox::wire {

// The body of a message, packed (pack.h).
struct PushPacked {
  std::uint32_t root = 0;
  std::uint32_t raw_size = 0;  // ≤ kMaxPushRaw
  Bytes body;
};
template <class Ar, class M>
void PushPacked_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.num(m.raw_size), ar.bytes(m.body, kMaxPushBody);
}
NEARBOX_FIELDS(PushPacked)

// ---- is it as it was? -----------------------------------------------------------------------------

// What the agent said of a path when it was made: inode, size and times in one number. 0: none. Directories
// have one of their type alone.
using PushStamp = std::uint64_t;

// Paths beside paths and stamps beside stamps: so they pack best. Of a stamp the lower half travels.
struct PushCheckList {
  std::vector<std::string> paths;
  Bytes stamps;  // four bytes for each path
};
inline constexpr std::size_t kPushCheckBytes = 4;
template <class Ar, class M>
void PushCheckList_fields(Ar& ar, M& m) {
  ar.strings(m.paths, kMaxPushChecks, kMaxPath), ar.bytes(m.stamps, kMaxPushChecks * kPushCheckBytes);
}
NEARBOX_FIELDS(PushCheckList)

struct PushBegin {
  std::string path;  // as RootOpen has it
  bool create = false;
  PushPacked checks;  // PushCheckList; its `root` says nothing. raw_size 0: none
};
template <class Ar, class M>
void PushBegin_fields(Ar& ar, M& m) {
  ar.bytes(m.path, kMaxPath), ar.num(m.create), fields(ar, m.checks);
}
NEARBOX_FIELDS(PushBegin)

enum class PushSeen : std::uint8_t {
  kSame = 0,      // type and content (a comparison: also the mode)
  kMissing = 1,   // nothing there
  kOther = 2,     // something else
  kMode = 3,      // of a comparison: the permission bits alone differ
  kNoAccess = 4,  // it could not be looked at
};

struct PushDiffers {
  std::uint32_t index = 0;
  PushSeen seen = PushSeen::kSame;
};
template <class Ar, class M>
void PushDiffers_fields(Ar& ar, M& m) {
  ar.num(m.index), ar.num(m.seen);
}
NEARBOX_FIELDS(PushDiffers)

struct PushStage {
  Digest digest{};  // that the file shall have
};
template <class Ar, class M>
void PushStage_fields(Ar& ar, M& m) {
  ar.fixed(m.digest);
}
NEARBOX_FIELDS(PushStage)

struct PushBeginReply {
  std::uint32_t root = 0;        // as RootReply has it
  std::string path;              // canonical, absolute
  bool empty = false;            // nothing lies below the root
  std::int64_t realtime_ns = 0;  // the sandbox's clock
  std::uint64_t free_bytes = 0;
  std::vector<PushDiffers> differs;  // the checks that are not kSame
  std::vector<PushStage> stages;     // files that are half here
};
template <class Ar, class M>
void PushBeginReply_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), ar.num(m.empty), ar.num(m.realtime_ns), ar.num(m.free_bytes);
  ar.list(m.differs, kMaxPushChecks), ar.list(m.stages, kMaxPushStages);
}
NEARBOX_FIELDS(PushBeginReply)

enum class PushType : std::uint8_t { kFile = 1, kDirectory = 2, kSymlink = 3 };

struct PushCompareItem {
  std::string path;
  PushType type = PushType::kFile;
  std::uint32_t mode = 0;
  std::uint64_t size = 0;
  Digest digest{};
};
template <class Ar, class M>
void PushCompareItem_fields(Ar& ar, M& m) {
  ar.bytes(m.path, kMaxPath), ar.num(m.type), ar.num(m.mode), ar.num(m.size), ar.fixed(m.digest);
}
NEARBOX_FIELDS(PushCompareItem)

struct PushCompareList {
  std::vector<PushCompareItem> items;
};
template <class Ar, class M>
void PushCompareList_fields(Ar& ar, M& m) {
  ar.list(m.items, kMaxPushChecks);
}
NEARBOX_FIELDS(PushCompareList)

struct PushCompareResult {
  PushSeen seen = PushSeen::kSame;
  PushStamp stamp = 0;
};
template <class Ar, class M>
void PushCompareResult_fields(Ar& ar, M& m) {
  ar.num(m.seen), ar.num(m.stamp);
}
NEARBOX_FIELDS(PushCompareResult)

struct PushCompareReply {
  std::vector<PushCompareResult> results;  // as many as items, same order
};
template <class Ar, class M>
void PushCompareReply_fields(Ar& ar, M& m) {
  ar.list(m.results, kMaxPushChecks);
}
NEARBOX_FIELDS(PushCompareReply)

// ---- what else is there ---------------------------------------------------------------------------

struct PushList {
  std::uint32_t root = 0;
  std::vector<std::string> dirs;
};
template <class Ar, class M>
void PushList_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.strings(m.dirs, kMaxPushDirs, kMaxPath);
}
NEARBOX_FIELDS(PushList)

// A name in one of the directories. Those that cannot be listed have none.
struct PushListed {
  std::uint32_t dir = 0;  // its number in the list
  PushType type = PushType::kFile;
  std::string name;
};
template <class Ar, class M>
void PushListed_fields(Ar& ar, M& m) {
  ar.num(m.dir), ar.num(m.type), ar.bytes(m.name, kMaxName);
}
NEARBOX_FIELDS(PushListed)

// ---- changes --------------------------------------------------------------------------------------

enum class PushKind : std::uint8_t {
  kFile = 1,        // `data` is all of it
  kStaged = 2,      // a file whose bytes came in parts
  kSymlink = 3,     // to `source`
  kDirectory = 4,   // made, or given its mode
  kMode = 5,        // of a file
  kCopy = 6,        // a file that has the bytes of `source`
  kRename = 7,      // `source` moves here
  kRenameTree = 8,  // a directory `source`, with all in it
  kDelete = 9,      // a file or symlink
  kRemoveDir = 10,  // a directory, if nothing is left in it
};

// What is expected at `path` before.
enum class PushExpect : std::uint8_t {
  kAbsent = 0,
  kBase = 1,  // content `base`; of a file or of a symlink, by `base_type`
  kAny = 2,
};

// What becomes of something else that is found there.
enum class PushConflict : std::uint8_t {
  kKeepBoth = 0,   // it gets another name beside, the change is made
  kLeave = 1,      // it stays, the change is not made
  kOverwrite = 2,  // it is replaced; directories stay
};

struct PushEntry {
  PushKind kind = PushKind::kFile;
  PushExpect expect = PushExpect::kAbsent;
  PushType base_type = PushType::kFile;
  PushConflict conflict = PushConflict::kKeepBoth;
  std::uint32_t mode = 0;
  std::int64_t mtime_ns = 0;  // of what is new; what is changed gets a time later than it had
  std::uint64_t size = 0;
  Digest digest{};
  Digest base{};
  std::string path;
  std::string source;
  Bytes data;
};
template <class Ar, class M>
void PushEntry_fields(Ar& ar, M& m) {
  ar.num(m.kind), ar.num(m.expect), ar.num(m.base_type), ar.num(m.conflict), ar.num(m.mode);
  ar.num(m.mtime_ns), ar.num(m.size), ar.fixed(m.digest), ar.fixed(m.base);
  ar.bytes(m.path, kMaxPath), ar.bytes(m.source, kMaxPath), ar.bytes(m.data, kMaxPushFile);
}
NEARBOX_FIELDS(PushEntry)

struct PushBatch {
  std::vector<PushEntry> entries;
};
template <class Ar, class M>
void PushBatch_fields(Ar& ar, M& m) {
  ar.list(m.entries, kMaxPushEntries);
}
NEARBOX_FIELDS(PushBatch)

enum class PushOutcome : std::uint8_t {
  kDone = 0,
  kAlready = 1,   // it was so before: times are left alone
  kKeptBoth = 2,  // done; what was there is `kept_as` now
  kLeft = 3,      // something else is there, and stays
  kFailed = 4,    // `error`
};

struct PushResult {
  PushOutcome outcome = PushOutcome::kDone;
  std::int32_t error = 0;  // errno; EBADMSG: other bytes came than their digest says
  PushStamp stamp = 0;
  std::string kept_as;
};
template <class Ar, class M>
void PushResult_fields(Ar& ar, M& m) {
  ar.num(m.outcome), ar.num(m.error), ar.num(m.stamp), ar.bytes(m.kept_as, kMaxPath);
}
NEARBOX_FIELDS(PushResult)

struct PushReply {
  std::vector<PushResult> results;  // as many as entries, same order
};
template <class Ar, class M>
void PushReply_fields(Ar& ar, M& m) {
  ar.list(m.results, kMaxPushEntries);
}
NEARBOX_FIELDS(PushReply)

// ---- large files ----------------------------------------------------------------------------------

// Bytes `offset` … of the file that is staged: the next ones of the part's body, or from `from` on in the
// file `PushPart::base`.
struct PushSegment {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool copied = false;
  std::uint64_t from = 0;
};
template <class Ar, class M>
void PushSegment_fields(Ar& ar, M& m) {
  ar.num(m.offset), ar.num(m.length), ar.num(m.copied), ar.num(m.from);
}
NEARBOX_FIELDS(PushSegment)

struct PushPart {
  Digest stage{};    // the digest that the file shall have
  std::string base;  // path of the file that copied segments come from
  std::vector<PushSegment> segments;
  PushPacked body;
};
template <class Ar, class M>
void PushPart_fields(Ar& ar, M& m) {
  ar.fixed(m.stage), ar.bytes(m.base, kMaxPath), ar.list(m.segments, kMaxPushSegments), fields(ar, m.body);
}
NEARBOX_FIELDS(PushPart)

struct PushChunks {
  std::uint32_t root = 0;
  bool staged = false;  // the file that is half here; else the one at `path`
  Digest stage{};
  std::string path;
};
template <class Ar, class M>
void PushChunks_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.num(m.staged), ar.fixed(m.stage), ar.bytes(m.path, kMaxPath);
}
NEARBOX_FIELDS(PushChunks)

// Of the answer stream: twelve bytes each, in the order of the file.
struct PushChunk {
  std::uint32_t length = 0;
  std::uint64_t hash = 0;
};
template <class Ar, class M>
void PushChunk_fields(Ar& ar, M& m) {
  ar.num(m.length), ar.num(m.hash);
}
NEARBOX_FIELDS(PushChunk)
inline constexpr std::size_t kPushChunkBytes = 12;

struct PushChunksReply {
  std::uint64_t size = 0;
  Digest digest{};  // of the whole file
};
template <class Ar, class M>
void PushChunksReply_fields(Ar& ar, M& m) {
  ar.num(m.size), ar.fixed(m.digest);
}
NEARBOX_FIELDS(PushChunksReply)

}  // namespace nearbox::wire
