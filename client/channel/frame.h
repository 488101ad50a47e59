// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "client/base/result.h"
#include "client/channel/carrier.h"
#include "client/wire/messages.h"

// Frames of the protocol: reading, writing, putting messages together (docs/protocol.md, "Frames").
namespace nearbox::channel {

inline constexpr std::size_t kCallHeadBytes = 8;
// What a call in pieces may come to: the message and its CallHead.
inline constexpr std::size_t kMaxAssembled = wire::kMaxMessage + kCallHeadBytes;

struct Frame {
  wire::FrameHeader head;
  wire::ByteView payload;
};

// Appends one frame; the payload is at most kMaxFramePayload bytes.
void append_frame(wire::Bytes& out, wire::FrameType type, std::uint8_t flags, std::uint16_t code,
                  std::uint32_t call_id, wire::ByteView payload);

// The header in the first kFrameHeaderBytes of `bytes`.
// Errors: EPROTO when it breaks a rule every frame obeys.
base::Result<wire::FrameHeader> parse_header(wire::ByteView bytes);

// Cuts a carrier's bytes into frames.
//
// Owns:    a buffer of two frames; the carrier outlives it.
// Threads: one.
// Errors:  ETIMEDOUT: the deadline passed, nothing is lost, call again; EPROTO: broken frame, or the
//          peer closed inside one; else the carrier's.
class FrameReader {
 public:
  explicit FrameReader(Carrier& carrier);
  // The next frame, its payload valid until the next call; nothing: the peer closed between frames.
  base::Result<std::optional<Frame>> next(Deadline deadline);
  Deadline last_byte() const { return last_byte_; }  // when the peer was last heard; at first: creation
  std::uint64_t bytes_in() const { return bytes_in_; }

 private:
  Carrier& carrier_;
  wire::Bytes buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  Deadline last_byte_;
  std::uint64_t bytes_in_ = 0;
};

// Puts messages together that travel in pieces.
//
// Threads: one.
// Bounds:  kMaxPartialMessages, each at most kMaxAssembled bytes; memory grows with what came.
// Errors:  EPROTO above a bound, or when pieces of one message disagree.
class Assembler {
 public:
  // The whole message when `frame` ends one (valid until the next call, at most as long as the
  // frame's payload when that is all of it); nothing when more pieces follow.
  base::Result<std::optional<wire::ByteView>> add(const Frame& frame);
  std::size_t partial() const { return partial_.size(); }

 private:
  struct Partial {
    std::uint16_t code = 0;
    wire::Bytes bytes;
  };
  std::unordered_map<std::uint64_t, Partial> partial_;
  wire::Bytes whole_;
};

}  // namespace nearbox::channel
