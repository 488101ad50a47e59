// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/wire/attributes.h"
#include "client/wire/codec.h"
#include "client/wire/frames.h"
#include "client/wire/limits.h"

// Operations that change the sandbox, and the ordered events that acknowledge them. See messages.h.
namespace nearbox::wire {

// ---- operations -----------------------------------------------------------------------------

enum class OpKind : std::uint8_t {
  kCreate = 1,  // path, mode, flags O_EXCL, O_TRUNC; makes a regular file; answers its Attr
  kMkdir = 2,
  kMknod = 3,    // rdev
  kSymlink = 4,  // path, target
  kLink = 5,     // path (existing, must be `expect`) → path2
  kUnlink = 6,   // with kOpKeep the file stays readable as orphan `op_id` until kOpForget
  kRmdir = 7,
  kRename =
      8,  // path → path2, flags RENAME_NOREPLACE | RENAME_EXCHANGE; kOpKeep: a replaced file as for unlink
  kWrite = 9,       // data at offset
  kAppend = 10,     // data at the end the file has then; `offset` = where the client believes it is
  kTruncate = 11,   // size
  kSetAttr = 12,    // by SetMask: mode, uid, gid, mtime_ns, atime_ns (one system call each)
  kFallocate = 13,  // flags = mode, offset, size = length
  kFsync = 14,      // flags 1: data only. Covers all operations before it on that node
  kSetXattr = 15,   // target = name, data = value, flags XATTR_CREATE | XATTR_REPLACE
  kRemoveXattr = 16,
  kCopyRange = 17,  // path → path2: offset, rdev = offset in path2, size = length
};

inline constexpr std::uint8_t kOpBarrier = 1;  // waits for all before it, all after it wait
inline constexpr std::uint8_t kOpKeep = 2;     // see kUnlink
inline constexpr std::uint8_t kOpRetry = 4;    // sent to an earlier agent process, fate unknown: what is
                                               // already as this operation leaves it counts as success

enum SetMask : std::uint32_t {
  kSetMode = 1,
  kSetUid = 2,
  kSetGid = 4,
  kSetMtime = 8,
  kSetAtime = 16,
  kSetMtimeNow = 32,
  kSetAtimeNow = 64,
};

// What orders operations: two operations that share a key, one of them exclusively, keep their
// order; others may be applied side by side. The client hashes node identities and (directory,
// name) pairs into keys.
struct OrderKey {
  std::uint64_t key = 0;
  bool exclusive = true;
};
template <class Ar, class M>
void OrderKey_fields(Ar& ar, M& m) {
  ar.num(m.key), ar.num(m.exclusive);
}
NEARBOX_FIELDS(OrderKey)

// One record of the operation log. `op_id` is dense and increasing within a session: the agent
// applies each once, whatever is sent again after a reconnect.
struct Op {
  std::uint64_t op_id = 0;
  OpKind kind{};
  std::uint8_t op_flags = 0;
  std::vector<OrderKey> keys;
  std::uint32_t root = 0;
  std::string path;
  std::string path2;
  NodeId expect{};           // node at path (for creations: the parent directory); {0,0}: any
  NodeId expect2{};          // parent directory of path2; kCopyRange: the node at path2
  std::uint64_t orphan = 0;  // != 0: the kept file instead of path
  std::uint32_t flags = 0;
  std::uint32_t mode = 0;
  std::uint32_t set_mask = 0;
  std::uint32_t uid = 0;  // owner of what is created; kOwnerUser: the sandbox user
  std::uint32_t gid = 0;
  std::uint64_t rdev = 0;
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::int64_t mtime_ns = 0;  // creations and writes: the time the client showed; 0: now
  std::int64_t atime_ns = 0;
  std::string target;
  Bytes data;
};
inline constexpr std::uint32_t kOwnerUser = 0xffffffff;
template <class Ar, class M>
void Op_fields(Ar& ar, M& m) {
  ar.num(m.op_id), ar.num(m.kind), ar.num(m.op_flags), ar.list(m.keys, kMaxKeys), ar.num(m.root);
  ar.bytes(m.path, kMaxPath), ar.bytes(m.path2, kMaxPath), fields(ar, m.expect), fields(ar, m.expect2);
  ar.num(m.orphan), ar.num(m.flags), ar.num(m.mode), ar.num(m.set_mask), ar.num(m.uid), ar.num(m.gid);
  ar.num(m.rdev), ar.num(m.offset), ar.num(m.size), ar.num(m.mtime_ns), ar.num(m.atime_ns);
  ar.bytes(m.target, kMaxPath), ar.bytes(m.data, kMaxWriteBytes);
}
NEARBOX_FIELDS(Op)

struct Apply {
  std::vector<Op> ops;
};
template <class Ar, class M>
void Apply_fields(Ar& ar, M& m) {
  ar.list(m.ops, kMaxOpsPerBatch);
}
NEARBOX_FIELDS(Apply)

// ---- events ---------------------------------------------------------------------------------

enum class EventKind : std::uint8_t {
  kOpDone = 1,    // OpDone
  kProcExit = 2,  // ProcExit
  kChanged = 3,   // Changed (changes.h)
  kLost = 4,      // Lost
};

// `seq` is dense within one agent instance and session, from 1. The agent keeps events until they
// are confirmed (bounded; past the bound the session is lost and the client starts anew). `tag` is random:
// two copies of one agent that both go on give different ones under the same number.
struct Event {
  std::uint64_t seq = 0;
  EventKind kind{};
  Bytes body;
  std::uint32_t tag = 0;
};
template <class Ar, class M>
void Event_fields(Ar& ar, M& m) {
  ar.num(m.seq), ar.num(m.kind), ar.bytes(m.body, kMaxEventBytes), ar.num(m.tag);
}
NEARBOX_FIELDS(Event)

struct OpDone {
  std::uint64_t op_id = 0;
  std::int32_t error = 0;
  std::uint64_t written = 0;  // kWrite, kAppend, kCopyRange: bytes
  std::uint64_t offset = 0;   // kAppend: where they landed
  Attr attr;                  // of the node after it (zero ino: gone)
  Attr parent;                // of the directory that changed (zero ino: none)
  Attr parent2;               // kRename across directories
  Attr before;                // of the node as the operation found it: kWrite, kAppend, kTruncate, kSetAttr,
                              // kFallocate, kCopyRange (path2); zero ino: not looked at
};
template <class Ar, class M>
void OpDone_fields(Ar& ar, M& m) {
  ar.num(m.op_id), ar.num(m.error), ar.num(m.written), ar.num(m.offset);
  fields(ar, m.attr), fields(ar, m.parent), fields(ar, m.parent2), fields(ar, m.before);
}
NEARBOX_FIELDS(OpDone)

struct ProcExit {
  std::uint64_t proc = 0;
  std::int32_t code = 0;  // exit code, -1 when ended by a signal
  std::int32_t signal = 0;
};
template <class Ar, class M>
void ProcExit_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.code), ar.num(m.signal);
}
NEARBOX_FIELDS(ProcExit)

struct Subscribe {
  std::uint64_t instance = 0;  // of the events seen so far; another one than the agent's: from the start
  std::uint64_t after_seq = 0;
  std::uint32_t tag = 0;  // of event after_seq, where that is not 0
};
template <class Ar, class M>
void Subscribe_fields(Ar& ar, M& m) {
  ar.num(m.instance), ar.num(m.after_seq), ar.num(m.tag);
}
NEARBOX_FIELDS(Subscribe)

struct Confirm {
  std::uint64_t seq = 0;
  std::uint64_t nonce = 0;
};
template <class Ar, class M>
void Confirm_fields(Ar& ar, M& m) {
  ar.num(m.seq), ar.num(m.nonce);
}
NEARBOX_FIELDS(Confirm)

struct OrphanForget {
  std::uint64_t orphan = 0;
};
template <class Ar, class M>
void OrphanForget_fields(Ar& ar, M& m) {
  ar.num(m.orphan);
}
NEARBOX_FIELDS(OrphanForget)

}  // namespace nearbox::wire
