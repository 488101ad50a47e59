// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/wire/codec.h"
#include "client/wire/limits.h"

// Processes of the sandbox and their output. See messages.h.
namespace nearbox::wire {

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

// May come before the ProcStart it belongs to: by another connection.
struct ProcAttach {
  std::uint64_t proc = 0;
  std::uint64_t offset =
      0;                // position in the process' output (stdout and stderr share one ring and one offset)
  bool early = false;   // a process that is not known yet is waited for, 30 s at most
  bool settle = false;  // the exit comes after a barrier, with what it is to be waited for
};
template <class Ar, class M>
void ProcAttach_fields(Ar& ar, M& m) {
  ar.num(m.proc), ar.num(m.offset), ar.num(m.early), ar.num(m.settle);
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
  // kExit: what happened before it was told by this event of this agent; 0: not known.
  std::uint64_t instance = 0;
  std::uint64_t seq = 0;
  Bytes data;
};
template <class Ar, class M>
void ProcOutput_fields(Ar& ar, M& m) {
  ar.num(m.stream), ar.num(m.offset), ar.num(m.lost), ar.num(m.code), ar.num(m.signal);
  ar.num(m.instance), ar.num(m.seq);
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
