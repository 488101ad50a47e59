// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/channel/carrier.h"

// WebSocket framing (RFC 6455), by hand: docs/adr/0003-websocket-framing.md.
namespace nearbox::channel {

inline constexpr std::size_t kMaxWsPayload = 1024 * 1024;  // of one frame received
inline constexpr std::size_t kMaxWsControl = 125;          // RFC 6455 section 5.5
// Control frames taken without data between them: a peer that pings once a second fills it in minutes
// of silence, which the channel's own heartbeat does not let pass.
inline constexpr std::size_t kMaxWsControlRun = 256;

enum class WsRole : std::uint8_t { kClient, kServer };  // a client masks what it sends

enum class WsOpcode : std::uint8_t {
  kContinuation = 0,
  kText = 1,
  kBinary = 2,
  kClose = 8,
  kPing = 9,
  kPong = 10,
};

struct WsHeader {
  WsOpcode opcode{};
  bool fin = true;
  bool masked = false;
  std::uint64_t length = 0;
  std::array<std::byte, 4> mask{};
};

// Appends a frame; masked with `mask` when there is one.
void append_ws_frame(wire::Bytes& out, WsOpcode opcode, bool fin, wire::ByteView payload,
                     const std::optional<std::array<std::byte, 4>>& mask);

// Takes the bytes of the other end's frames in pieces of any size and hands on what is in them.
//
// Threads: one.
// Bounds:  keeps one header and one control frame; data is handed on as it comes, so fragmented and
//          large messages cost nothing.
// Errors:  EPROTO: reserved bits or opcodes, text, wrong masking, sizes above the limits or not in
//          their shortest form, fragments out of order, broken control frames.
class WsParser {
 public:
  explicit WsParser(WsRole own_role) : own_role_(own_role) {}

  struct Event {
    enum class Kind : std::uint8_t { kNeedMore, kData, kPing, kPong, kClose };
    Kind kind = Kind::kNeedMore;
    std::size_t used = 0;    // bytes of the input consumed
    wire::ByteView payload;  // data: in the input itself, unmasked; control: valid until the next call
  };
  // Looks at `in` (changed in place by unmasking) up to the next event.
  base::Result<Event> step(std::span<std::byte> in);
  // No frame or message is half received.
  bool at_boundary() const { return header_size_ == 0 && !in_frame_ && !in_message_; }

 private:
  base::Result<bool> take_header(std::span<const std::byte> in, std::size_t& used);
  base::Result<void> begin_frame();
  void end_frame();
  bool is_control() const { return frame_.opcode >= WsOpcode::kClose; }
  std::span<std::byte> take_payload(std::span<std::byte> in, std::size_t& used);
  base::Result<Event> finish_control(std::size_t used);

  const WsRole own_role_;
  std::array<std::byte, 14> header_bytes_{};
  std::size_t header_size_ = 0;
  WsHeader frame_;
  std::uint64_t left_ = 0;  // payload bytes of the frame still to come
  std::uint64_t at_ = 0;    // payload bytes seen, for the mask
  bool in_frame_ = false;
  bool in_message_ = false;
  std::array<std::byte, kMaxWsControl> control_{};
  std::size_t control_size_ = 0;
};

// A carrier of binary WebSocket messages above one of plain bytes; message borders mean nothing.
//
// Owns:    the carrier below.
// Threads: as Carrier. A ping is answered with the next write(), which the channel's own heartbeat
//          brings within ping_after: so the reader never writes, and no lock is held while writing.
// Errors:  as Carrier; EPROTO for what WsParser refuses and for kMaxWsControlRun control frames in a row;
//          read() gives 0 after a close frame. Frames without data do not prolong its deadline.
class WsCarrier final : public Carrier {
 public:
  // `early`: bytes of the other end that were read behind the upgrade's head.
  WsCarrier(std::unique_ptr<Carrier> below, WsRole role, wire::Bytes early = {});
  ~WsCarrier() override;
  WsCarrier(const WsCarrier&) = delete;
  WsCarrier& operator=(const WsCarrier&) = delete;

  base::Result<std::size_t> read(std::span<std::byte> into, Deadline deadline) override;
  base::Result<void> write(wire::ByteView bytes, Deadline deadline) override EXCLUDES(mu_);
  void shutdown() noexcept override;

 private:
  void frame(WsOpcode opcode, wire::ByteView payload);
  void take(const WsParser::Event& event) EXCLUDES(mu_);

  const std::unique_ptr<Carrier> below_;
  const WsRole role_;

  // Reader.
  WsParser parser_;
  wire::Bytes buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  wire::ByteView data_;       // in buffer_: not handed on yet
  std::size_t controls_ = 0;  // since the last data
  bool closed_ = false;

  // Writer.
  wire::Bytes out_;
  std::array<std::byte, 256> random_{};
  std::size_t random_used_ = 256;

  base::Mutex mu_;                                   // rank: leaf
  std::optional<wire::Bytes> pong_ GUARDED_BY(mu_);  // owed: the newest ping's payload (section 5.5.3)
};

}  // namespace nearbox::channel
