// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "client/wire/codec.h"
#include "client/wire/limits.h"

// The messages between nearbox and its agent. docs/protocol.md says when each is sent, what it
// means and how it is resumed; here are the shapes. Paths are bytes, relative to their root, without
// leading or trailing '/', "" is the root itself; each is checked by valid_path() (paths.h) by the
// side that receives it. Errors are Linux errno numbers (x86-64), 0 is success.
//
// `fields` templates take Ar = Writer with const M, or Reader with M.
namespace nearbox::wire {

using Token = std::array<std::byte, kTokenBytes>;
using SessionId = std::array<std::byte, kSessionIdBytes>;

enum class FrameType : std::uint8_t {
  kHello = 1,    // client → agent, first; payload Hello
  kWelcome = 2,  // agent → client, first; payload Welcome
  kRefused = 3,  // agent → client instead of Welcome; payload Refused; then it closes
  kCall = 4,     // client → agent; method in `code`; first piece starts with CallHead
  kChunk = 5,    // agent → client: one piece of a call's answer stream; spends credit
  kEnd = 6,      // agent → client: last of a call; errno in `code`; payload by method
  kCredit = 7,   // client → agent: payload u32 more bytes the call may send
  kCancel = 8,   // client → agent: stop the call; it ends with ECANCELED (or what it had become)
  kPing = 9,     // either; payload u64, echoed
  kPong = 10,
  kNote = 11,  // client → agent, no answer; method in `code`
};

inline constexpr std::uint8_t kFlagMore = 1;  // further pieces of this kCall/kNote/kEnd follow

// 12 bytes before each frame's payload.
struct FrameHeader {
  std::uint32_t length = 0;  // of the payload, ≤ kMaxFramePayload
  FrameType type{};
  std::uint8_t flags = 0;
  std::uint16_t code = 0;     // method or errno
  std::uint32_t call_id = 0;  // chosen by the client, unique among its live calls on a connection
};
inline constexpr std::size_t kFrameHeaderBytes = 12;
template <class Ar, class M>
void header_fields(Ar& ar, M& m) {
  ar.num(m.length), ar.num(m.type), ar.num(m.flags), ar.num(m.code), ar.num(m.call_id);
}

// ---- connection -----------------------------------------------------------------------------

inline constexpr std::uint64_t kHelloMagic = 0x31584f425241454eULL;  // "NEARBOX1"

enum class Role : std::uint8_t { kControl = 0, kBulk = 1 };

struct Hello {
  std::uint64_t magic = kHelloMagic;
  std::uint16_t version = kProtocolVersion;
  Role role = Role::kControl;
  Token token{};
  SessionId session{};  // same on every connection and reconnection of one client
  std::string build;    // for logs and messages
};
template <class Ar, class M>
void Hello_fields(Ar& ar, M& m) {
  ar.num(m.magic), ar.num(m.version), ar.num(m.role), ar.fixed(m.token), ar.fixed(m.session);
  ar.bytes(m.build, kMaxText);
}
NEARBOX_FIELDS(Hello)

struct Welcome {
  std::uint16_t version = kProtocolVersion;
  std::uint64_t instance = 0;         // random per agent process: another one means a new epoch
  bool resumed = false;               // the agent knew this session
  std::uint64_t nonce = 0;            // the newest nonce this session was handed (rollback rule)
  std::uint32_t session_grace_s = 0;  // how long a session outlives its last connection
  std::uint64_t features = 0;         // Feature bits
  std::string build;
};
template <class Ar, class M>
void Welcome_fields(Ar& ar, M& m) {
  ar.num(m.version), ar.num(m.instance), ar.num(m.resumed), ar.num(m.nonce);
  ar.num(m.session_grace_s), ar.num(m.features), ar.bytes(m.build, kMaxText);
}
NEARBOX_FIELDS(Welcome)

struct Refused {
  std::int32_t error = 0;  // EACCES token, EPROTO version, EBUSY limit
  std::string text;
};
template <class Ar, class M>
void Refused_fields(Ar& ar, M& m) {
  ar.num(m.error), ar.bytes(m.text, kMaxText);
}
NEARBOX_FIELDS(Refused)

// Starts the payload of every kCall.
struct CallHead {
  std::uint32_t credit = 0;       // bytes of kChunk payload the agent may send at first
  std::uint32_t deadline_ms = 0;  // from receipt; 0 none. The agent gives up with ETIMEDOUT
};
template <class Ar, class M>
void CallHead_fields(Ar& ar, M& m) {
  ar.num(m.credit), ar.num(m.deadline_ms);
}
NEARBOX_FIELDS(CallHead)

enum class Method : std::uint16_t {
  // calls
  kInfo = 1,       // {} → End InfoReply
  kRootOpen = 2,   // RootOpen → End RootReply
  kTree = 3,       // Tree → chunks: one zstd stream of the tree format (tree.h); End TreeReply
  kStatMany = 4,   // StatMany → End StatManyReply
  kRead = 5,       // Read → chunks: file bytes; End ReadReply
  kReadMany = 6,   // ReadMany → chunks: records of tree.h's file format; End {}
  kStatFs = 7,     // PathCall → End StatFsReply
  kGetXattr = 8,   // XattrCall → End BytesReply
  kListXattr = 9,  // XattrCall → End BytesReply (NUL-separated)
  kSubscribe =
      10,  // Subscribe → chunks: Event records, each with a u32 length before it; never ends by itself
  kProcStart = 11,  // ProcStart → End ProcReply
  kProcAttach = 12,  // ProcAttach → chunks: ProcOutput records (u32 length each); End when exited and drained
  kProcInput = 13,   // ProcInput → End ProcInputReply, sent when the bytes were written to the process
  kProcSignal = 14,  // ProcSignal → End {}
  kProcResize = 15,  // ProcResize → End {}
  kProcList = 16,    // {} → End ProcListReply
  kReadLink = 17,    // PathCall → End BytesReply
  kWatch = 18,       // Watch → End WatchReply (changes.h); once more: another WatchReply, the same watch
  kBarrier = 19,     // Barrier → End BarrierReply
  // notes
  kApply = 32,         // Apply: operations; each is acknowledged by an Event
  kConfirm = 33,       // Confirm: events up to seq are durable here, forget them; new nonce
  kOpForget = 34,      // OrphanForget: the kernel forgot an unlinked file that was kept open
  kTreeHurry = 35,     // TreeHurry: send this directory of a running Tree call next
  kProcConsumed = 36,  // ProcConsumed: output up to these offsets was delivered
  kProcForget = 37,    // ProcForget: drop an exited process' record and output
  kSessionEnd = 38,    // {}: this client is done: forget the session (foreground processes get HUP)
};

// ---- attributes -----------------------------------------------------------------------------

struct Attr {
  std::uint64_t ino = 0;
  std::uint64_t dev = 0;   // st_dev of the sandbox; with ino it identifies a node
  std::uint32_t mode = 0;  // type and permission bits
  std::uint32_t nlink = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t rdev = 0;
  std::uint64_t size = 0;
  std::uint64_t blocks = 0;   // 512-byte units
  std::int64_t mtime_ns = 0;  // since the epoch, as are all times
  std::int64_t ctime_ns = 0;
  std::uint64_t version = 0;  // the agent's change counter for this node; 0: not tracked yet
  bool operator==(const Attr&) const = default;
};
template <class Ar, class M>
void Attr_fields(Ar& ar, M& m) {
  ar.num(m.ino), ar.num(m.dev), ar.num(m.mode), ar.num(m.nlink), ar.num(m.uid), ar.num(m.gid);
  ar.num(m.rdev), ar.num(m.size), ar.num(m.blocks), ar.num(m.mtime_ns), ar.num(m.ctime_ns);
  ar.num(m.version);
}
NEARBOX_FIELDS(Attr)

struct NodeId {
  std::uint64_t dev = 0;
  std::uint64_t ino = 0;
  auto operator<=>(const NodeId&) const = default;
};
template <class Ar, class M>
void NodeId_fields(Ar& ar, M& m) {
  ar.num(m.dev), ar.num(m.ino);
}
NEARBOX_FIELDS(NodeId)

// ---- calls ----------------------------------------------------------------------------------

enum Feature : std::uint64_t {
  kFeatureRoot = 1,      // the agent runs as root
  kFeatureFanotify = 2,  // whole-file-system watch possible
  kFeatureFanRename = 4,
  kFeatureOutOfCgroup = 8,  // it left the build's cgroup
  kFeatureOomLowered = 16,
};

struct InfoReply {
  std::string hostname;
  std::string kernel;
  std::string user;  // the sandbox user: whose login environment commands get
  std::string home;
  std::string work_dir;   // default DIR of mounts
  std::uint32_t uid = 0;  // of that user
  std::uint32_t gid = 0;
  std::uint32_t agent_uid = 0;
  std::int64_t boottime_ns = 0;  // CLOCK_BOOTTIME now
  std::int64_t realtime_ns = 0;
};
template <class Ar, class M>
void InfoReply_fields(Ar& ar, M& m) {
  ar.bytes(m.hostname, kMaxText), ar.bytes(m.kernel, kMaxText), ar.bytes(m.user, kMaxText);
  ar.bytes(m.home, kMaxPath), ar.bytes(m.work_dir, kMaxPath);
  ar.num(m.uid), ar.num(m.gid), ar.num(m.agent_uid), ar.num(m.boottime_ns), ar.num(m.realtime_ns);
}
NEARBOX_FIELDS(InfoReply)

struct RootOpen {
  std::string path;     // absolute, or "~" / relative: below the sandbox user's home; symlinks followed
  bool create = false;  // mkdir -p as the sandbox user
};
template <class Ar, class M>
void RootOpen_fields(Ar& ar, M& m) {
  ar.bytes(m.path, kMaxPath), ar.num(m.create);
}
NEARBOX_FIELDS(RootOpen)

struct RootReply {
  std::uint32_t root = 0;  // number to name it by, in this session; survives reconnects to the same agent
  std::string path;        // canonical absolute path
  Attr attr;
  std::uint64_t fs_type = 0;  // statfs f_type
};
template <class Ar, class M>
void RootReply_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), fields(ar, m.attr), ar.num(m.fs_type);
}
NEARBOX_FIELDS(RootReply)

struct Tree {
  std::uint32_t root = 0;
  std::string path;
  std::uint32_t depth = 0;        // levels below path; 0: all
  std::uint64_t max_entries = 0;  // stop expanding after so many; 0: no limit
};
template <class Ar, class M>
void Tree_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), ar.num(m.depth), ar.num(m.max_entries);
}
NEARBOX_FIELDS(Tree)

struct TreeReply {
  std::uint64_t entries = 0;
  std::uint64_t directories = 0;
  std::uint64_t seq = 0;  // the event sequence when the walk began: later events may repeat what was sent
  bool truncated = false;
};
template <class Ar, class M>
void TreeReply_fields(Ar& ar, M& m) {
  ar.num(m.entries), ar.num(m.directories), ar.num(m.seq), ar.num(m.truncated);
}
NEARBOX_FIELDS(TreeReply)

struct TreeHurry {
  std::uint32_t call_id = 0;
  std::string path;
};
template <class Ar, class M>
void TreeHurry_fields(Ar& ar, M& m) {
  ar.num(m.call_id), ar.bytes(m.path, kMaxPath);
}
NEARBOX_FIELDS(TreeHurry)

struct PathCall {
  std::uint32_t root = 0;
  std::string path;
  NodeId expect{};           // {0,0}: any
  std::uint64_t orphan = 0;  // != 0: the kept file of that number instead of path
};
template <class Ar, class M>
void PathCall_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), fields(ar, m.expect), ar.num(m.orphan);
}
NEARBOX_FIELDS(PathCall)

struct StatMany {
  std::uint32_t root = 0;
  std::vector<std::string> paths;
};
template <class Ar, class M>
void StatMany_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.strings(m.paths, kMaxStatMany, kMaxPath);
}
NEARBOX_FIELDS(StatMany)

struct StatResult {
  std::int32_t error = 0;
  Attr attr;
  std::string target;  // of a symlink
};
template <class Ar, class M>
void StatResult_fields(Ar& ar, M& m) {
  ar.num(m.error), fields(ar, m.attr), ar.bytes(m.target, kMaxPath);
}
NEARBOX_FIELDS(StatResult)

struct StatManyReply {
  std::vector<StatResult> results;  // as many as paths, same order
};
template <class Ar, class M>
void StatManyReply_fields(Ar& ar, M& m) {
  ar.list(m.results, kMaxStatMany);
}
NEARBOX_FIELDS(StatManyReply)

struct Read {
  PathCall at;  // ESTALE when `expect` is another node; EISDIR, ENOENT, EACCES …
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // ≤ kMaxReadBytes; a short stream means end of file
};
template <class Ar, class M>
void Read_fields(Ar& ar, M& m) {
  fields(ar, m.at), ar.num(m.offset), ar.num(m.length);
}
NEARBOX_FIELDS(Read)

struct ReadReply {
  Attr attr;  // of the file after the last byte was read
  bool eof = false;
};
template <class Ar, class M>
void ReadReply_fields(Ar& ar, M& m) {
  fields(ar, m.attr), ar.num(m.eof);
}
NEARBOX_FIELDS(ReadReply)

struct ReadManyItem {
  std::string path;
  NodeId expect{};
};
template <class Ar, class M>
void ReadManyItem_fields(Ar& ar, M& m) {
  ar.bytes(m.path, kMaxPath), fields(ar, m.expect);
}
NEARBOX_FIELDS(ReadManyItem)

// Whole small files, streamed in order. Each answer record: u32 length | ReadManyRecord. A file
// larger than max_file, or one that would not fit max_total, answers EFBIG and no bytes.
struct ReadMany {
  std::uint32_t root = 0;
  std::uint32_t max_file = 0;  // ≤ kMaxWriteBytes
  std::uint64_t max_total = 0;
  std::vector<ReadManyItem> items;
};
template <class Ar, class M>
void ReadMany_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.num(m.max_file), ar.num(m.max_total), ar.list(m.items, kMaxReadMany);
}
NEARBOX_FIELDS(ReadMany)

struct ReadManyRecord {
  std::uint32_t index = 0;
  std::int32_t error = 0;
  Attr attr;
  Bytes data;
};
template <class Ar, class M>
void ReadManyRecord_fields(Ar& ar, M& m) {
  ar.num(m.index), ar.num(m.error), fields(ar, m.attr), ar.bytes(m.data, kMaxWriteBytes);
}
NEARBOX_FIELDS(ReadManyRecord)

struct StatFsReply {
  std::uint64_t blocks = 0, bfree = 0, bavail = 0, files = 0, ffree = 0;
  std::uint32_t bsize = 0, frsize = 0, namelen = 0;
};
template <class Ar, class M>
void StatFsReply_fields(Ar& ar, M& m) {
  ar.num(m.blocks), ar.num(m.bfree), ar.num(m.bavail), ar.num(m.files), ar.num(m.ffree);
  ar.num(m.bsize), ar.num(m.frsize), ar.num(m.namelen);
}
NEARBOX_FIELDS(StatFsReply)

struct XattrCall {
  PathCall at;
  std::string name;  // empty for kListXattr
};
template <class Ar, class M>
void XattrCall_fields(Ar& ar, M& m) {
  fields(ar, m.at), ar.bytes(m.name, kMaxName);
}
NEARBOX_FIELDS(XattrCall)

struct BytesReply {
  Bytes data;
};
template <class Ar, class M>
void BytesReply_fields(Ar& ar, M& m) {
  ar.bytes(m.data, kMaxXattrBytes);
}
NEARBOX_FIELDS(BytesReply)

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
// are confirmed (bounded; past the bound the session is lost and the client starts anew).
struct Event {
  std::uint64_t seq = 0;
  EventKind kind{};
  Bytes body;
};
template <class Ar, class M>
void Event_fields(Ar& ar, M& m) {
  ar.num(m.seq), ar.num(m.kind), ar.bytes(m.body, kMaxEventBytes);
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
};
template <class Ar, class M>
void Subscribe_fields(Ar& ar, M& m) {
  ar.num(m.instance), ar.num(m.after_seq);
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

// ---- processes ------------------------------------------------------------------------------

inline constexpr std::uint32_t kProcStdin = 1;  // stdin is a pipe; else /dev/null
inline constexpr std::uint32_t kProcPty = 2;
inline constexpr std::uint32_t kProcBackground =
    4;  // outlives the session; its oldest output goes when the ring is full
inline constexpr std::uint32_t kProcNoLogin = 8;  // argv as it is; else the user's login environment first

struct ProcStart {
  std::uint64_t proc = 0;  // chosen by the client, unique in its session; starting it again answers the same
  std::uint32_t flags = 0;
  std::vector<std::string> argv;
  std::vector<std::string> env;  // K=V, over the login environment
  std::string cwd;               // absolute or below the user's home; "" = home
  std::string user;              // "" = the sandbox user
  std::uint16_t rows = 0, cols = 0;
  std::uint32_t ring_bytes = 0;  // output kept per process; 0: the agent's default
};
template <class Ar, class M>
void ProcStart_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.flags), ar.strings(m.argv, kMaxArgs, kMaxArgBytes);
  ar.strings(m.env, kMaxEnv, kMaxArgBytes), ar.bytes(m.cwd, kMaxPath), ar.bytes(m.user, kMaxName);
  ar.num(m.rows), ar.num(m.cols), ar.num(m.ring_bytes);
}
NEARBOX_FIELDS(ProcStart)

struct ProcReply {
  std::uint64_t proc = 0;
  std::int32_t pid = 0;
  std::uint32_t ring_bytes = 0;
};
template <class Ar, class M>
void ProcReply_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.pid), ar.num(m.ring_bytes);
}
NEARBOX_FIELDS(ProcReply)

struct ProcAttach {
  std::uint64_t proc = 0;
  std::uint64_t offset =
      0;  // position in the process' output (stdout and stderr share one ring and one offset)
};
template <class Ar, class M>
void ProcAttach_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.offset);
}
NEARBOX_FIELDS(ProcAttach)

enum class ProcStream : std::uint8_t { kStdout = 1, kStderr = 2, kPty = 3, kGap = 4, kExit = 5 };

// One piece of output. kGap: `lost` bytes before `offset + lost` are gone. kExit: last record.
struct ProcOutput {
  ProcStream stream{};
  std::uint64_t offset = 0;  // of the first byte of data
  std::uint64_t lost = 0;
  std::int32_t code = 0;  // kExit
  std::int32_t signal = 0;
  Bytes data;
};
template <class Ar, class M>
void ProcOutput_fields(Ar& ar, M& m) {
  ar.num(m.stream), ar.num(m.offset), ar.num(m.lost), ar.num(m.code), ar.num(m.signal);
  ar.bytes(m.data, kMaxFramePayload);
}
NEARBOX_FIELDS(ProcOutput)

struct ProcInput {
  std::uint64_t proc = 0;
  std::uint64_t offset = 0;  // position in stdin of the first byte: bytes already taken are skipped
  bool eof = false;
  Bytes data;
};
template <class Ar, class M>
void ProcInput_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.offset), ar.num(m.eof), ar.bytes(m.data, kMaxWriteBytes);
}
NEARBOX_FIELDS(ProcInput)

struct ProcInputReply {
  std::uint64_t accepted = 0;  // stdin offset after the bytes written
};
template <class Ar, class M>
void ProcInputReply_fields(Ar& ar, M& m) {
  ar.num(m.accepted);
}
NEARBOX_FIELDS(ProcInputReply)

struct ProcSignal {
  std::uint64_t proc = 0;
  std::int32_t signal = 0;
  bool group = true;  // the process group; always the whole group for KILL at session end
};
template <class Ar, class M>
void ProcSignal_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.signal), ar.num(m.group);
}
NEARBOX_FIELDS(ProcSignal)

struct ProcResize {
  std::uint64_t proc = 0;
  std::uint16_t rows = 0, cols = 0;
};
template <class Ar, class M>
void ProcResize_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.rows), ar.num(m.cols);
}
NEARBOX_FIELDS(ProcResize)

struct ProcConsumed {
  std::uint64_t proc = 0;
  std::uint64_t offset = 0;
};
template <class Ar, class M>
void ProcConsumed_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.offset);
}
NEARBOX_FIELDS(ProcConsumed)

struct ProcForget {
  std::uint64_t proc = 0;
};
template <class Ar, class M>
void ProcForget_fields(Ar& ar, M& m) {
  ar.num(m.proc);
}
NEARBOX_FIELDS(ProcForget)

struct ProcInfo {
  std::uint64_t proc = 0;
  std::int32_t pid = 0;
  std::uint32_t flags = 0;
  bool exited = false;
  std::int32_t code = 0;
  std::int32_t signal = 0;
  std::uint64_t output_end = 0;
  std::string command;
};
template <class Ar, class M>
void ProcInfo_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.pid), ar.num(m.flags), ar.num(m.exited), ar.num(m.code), ar.num(m.signal);
  ar.num(m.output_end), ar.bytes(m.command, kMaxText);
}
NEARBOX_FIELDS(ProcInfo)

struct ProcListReply {
  std::vector<ProcInfo> procs;
};
template <class Ar, class M>
void ProcListReply_fields(Ar& ar, M& m) {
  ar.list(m.procs, kMaxProcs);
}
NEARBOX_FIELDS(ProcListReply)

}  // namespace nearbox::wire
