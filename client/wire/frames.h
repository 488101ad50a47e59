// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "client/wire/codec.h"
#include "client/wire/limits.h"

// The frame around every message, what opens a connection, and the names of the calls. See messages.h.
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
  kProcInput = 13,    // ProcInput → End ProcInputReply, sent when the bytes were written to the process
  kProcSignal = 14,   // ProcSignal → End {}
  kProcResize = 15,   // ProcResize → End {}
  kProcList = 16,     // {} → End ProcListReply
  kReadLink = 17,     // PathCall → End BytesReply
  kWatch = 18,        // Watch → End WatchReply (changes.h); once more: another WatchReply, the same watch
  kBarrier = 19,      // Barrier → End BarrierReply
  kMounts = 20,       // Mounts → End MountsReply
  kPushBegin = 24,    // PushBegin → End PushBeginReply (push.h)
  kPushCompare = 25,  // PushPacked of PushCompareList → End PushCompareReply
  kPushApply = 26,    // PushPacked of PushBatch → End PushReply
  kPushPart = 27,     // PushPart → End {}
  kPushList = 29,     // PushList → chunks: PushListed records, each with a u32 length before it; End {}
  kPushChunks = 28,   // PushChunks → chunks: PushChunk records; End PushChunksReply
  // notes
  kApply = 32,         // Apply: operations; each is acknowledged by an Event
  kConfirm = 33,       // Confirm: events up to seq are durable here, forget them; new nonce
  kOpForget = 34,      // OrphanForget: the kernel forgot an unlinked file that was kept open
  kTreeHurry = 35,     // TreeHurry: send this directory of a running Tree call next
  kProcConsumed = 36,  // ProcConsumed: output up to these offsets was delivered
  kProcForget = 37,    // ProcForget: drop an exited process' record and output
  kSessionEnd = 38,    // {}: this client is done: forget the session (foreground processes get HUP)
};

}  // namespace nearbox::wire
