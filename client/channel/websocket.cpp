// SPDX-License-Identifier: Apache-2.0
#include "client/channel/websocket.h"

#include <algorithm>
#include <cstring>
#include <sys/random.h>
#include <utility>

namespace nearbox::channel {
namespace {

constexpr std::size_t kReadBuffer = 64 * 1024;
constexpr std::size_t kMaxWritten = 256 * 1024;  // payload of one frame we send

base::Error broken(const char* what) { return base::errno_error(EPROTO, std::string("websocket: ") + what); }

std::uint8_t to_u8(std::byte b) { return std::to_integer<std::uint8_t>(b); }

void apply_mask(std::span<std::byte> bytes, const std::array<std::byte, 4>& mask, std::uint64_t at) {
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] ^= mask[(at + i) % 4];
}

}  // namespace

void append_ws_frame(wire::Bytes& out, WsOpcode opcode, bool fin, wire::ByteView payload,
                     const std::optional<std::array<std::byte, 4>>& mask) {
  const auto size = payload.size();
  out.reserve(out.size() + 14 + size);
  out.push_back(static_cast<std::byte>((fin ? 0x80 : 0) | static_cast<int>(opcode)));
  const int mask_bit = mask ? 0x80 : 0;
  std::size_t length_bytes = 0;
  if (size < 126) {
    out.push_back(static_cast<std::byte>(mask_bit | static_cast<int>(size)));
  } else if (size <= 0xffff) {
    out.push_back(static_cast<std::byte>(mask_bit | 126));
    length_bytes = 2;
  } else {
    out.push_back(static_cast<std::byte>(mask_bit | 127));
    length_bytes = 8;
  }
  for (std::size_t i = length_bytes; i-- > 0;) {
    out.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(size) >> (8 * i)));
  }
  if (mask) out.insert(out.end(), mask->begin(), mask->end());
  const auto at = out.size();
  out.insert(out.end(), payload.begin(), payload.end());
  if (mask) apply_mask(std::span(out).subspan(at), *mask, 0);
}

// Collects the header's bytes. True: frame_ is filled in.
base::Result<bool> WsParser::take_header(std::span<const std::byte> in, std::size_t& used) {
  while (true) {
    std::size_t need = 2;
    std::uint8_t short_length = 0;
    if (header_size_ >= 2) {
      short_length = to_u8(header_bytes_[1]) & 0x7f;
      if (short_length == 126) need += 2;
      if (short_length == 127) need += 8;
      if ((to_u8(header_bytes_[1]) & 0x80) != 0) need += 4;
    }
    if (header_size_ >= 2 && header_size_ == need) break;
    if (used == in.size()) return false;
    header_bytes_[header_size_++] = in[used++];
  }
  const auto first = to_u8(header_bytes_[0]);
  if ((first & 0x70) != 0) return broken("reserved bits are set");
  frame_ = WsHeader{};
  frame_.fin = (first & 0x80) != 0;
  frame_.opcode = static_cast<WsOpcode>(first & 0x0f);
  const auto second = to_u8(header_bytes_[1]);
  frame_.masked = (second & 0x80) != 0;
  frame_.length = second & 0x7f;
  std::size_t at = 2;
  const std::size_t length_bytes = frame_.length == 126 ? 2 : frame_.length == 127 ? 8 : 0;
  if (length_bytes > 0) {
    frame_.length = 0;
    for (std::size_t i = 0; i < length_bytes; ++i) {
      frame_.length = frame_.length << 8 | to_u8(header_bytes_[at++]);
    }
    if (frame_.length < (length_bytes == 2 ? 126u : 0x10000u))
      return broken("length not in its shortest form");
  }
  if (frame_.masked)
    std::copy_n(header_bytes_.begin() + static_cast<std::ptrdiff_t>(at), 4, frame_.mask.begin());
  header_size_ = 0;
  return true;
}

base::Result<void> WsParser::begin_frame() {
  if (frame_.masked != (own_role_ == WsRole::kServer)) {
    return broken(frame_.masked ? "a server masked a frame" : "a client sent a frame without a mask");
  }
  if (is_control()) {
    if (frame_.opcode > WsOpcode::kPong) return broken("unknown opcode");
    if (!frame_.fin) return broken("control frame in fragments");
    if (frame_.length > kMaxWsControl) return broken("control frame too long");
    control_size_ = 0;
  } else {
    if (frame_.opcode == WsOpcode::kText) return broken("text frame");
    if (frame_.opcode > WsOpcode::kBinary) return broken("unknown opcode");
    if ((frame_.opcode == WsOpcode::kContinuation) != in_message_) return broken("fragments out of order");
    if (frame_.length > kMaxWsPayload) return broken("frame above the limit");
    in_message_ = true;
  }
  left_ = frame_.length;
  at_ = 0;
  in_frame_ = true;
  return {};
}

void WsParser::end_frame() {
  in_frame_ = false;
  if (!is_control() && frame_.fin) in_message_ = false;
}

std::span<std::byte> WsParser::take_payload(std::span<std::byte> in, std::size_t& used) {
  const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(left_, in.size() - used));
  const auto part = in.subspan(used, size);
  if (frame_.masked) apply_mask(part, frame_.mask, at_);
  used += size;
  at_ += size;
  left_ -= size;
  return part;
}

base::Result<WsParser::Event> WsParser::finish_control(std::size_t used) {
  const auto payload = wire::ByteView(control_).first(control_size_);
  auto kind = Event::Kind::kPing;
  if (frame_.opcode == WsOpcode::kPong) kind = Event::Kind::kPong;
  if (frame_.opcode == WsOpcode::kClose) {
    kind = Event::Kind::kClose;
    if (payload.size() == 1) return broken("close frame of one byte");
    if (payload.size() >= 2 && (to_u8(payload[0]) << 8 | to_u8(payload[1])) < 1000) {
      return broken("close code below 1000");
    }
  }
  return Event{kind, used, payload};
}

base::Result<WsParser::Event> WsParser::step(std::span<std::byte> in) {
  std::size_t used = 0;
  while (true) {
    if (!in_frame_) {
      auto complete = take_header(in, used);
      if (!complete) return std::move(complete).error();
      if (!*complete) return Event{Event::Kind::kNeedMore, used, {}};
      if (auto begun = begin_frame(); !begun) return std::move(begun).error();
    }
    const auto part = take_payload(in, used);
    if (is_control()) {
      std::copy(part.begin(), part.end(), control_.begin() + static_cast<std::ptrdiff_t>(control_size_));
      control_size_ += part.size();
      if (left_ > 0) return Event{Event::Kind::kNeedMore, used, {}};
      end_frame();
      return finish_control(used);
    }
    if (left_ == 0) end_frame();
    if (!part.empty()) return Event{Event::Kind::kData, used, part};
    if (in_frame_) return Event{Event::Kind::kNeedMore, used, {}};
  }
}

WsCarrier::WsCarrier(std::unique_ptr<Carrier> below, WsRole role, wire::Bytes early)
    : below_(std::move(below)), role_(role), parser_(role), buffer_(std::max(kReadBuffer, early.size())) {
  std::copy(early.begin(), early.end(), buffer_.begin());
  end_ = early.size();
}

WsCarrier::~WsCarrier() {
  // A wish: where there is no room at once, the other end sees the stream end instead.
  out_.clear();
  const std::byte going_away[2] = {std::byte{0x03}, std::byte{0xe9}};  // 1001
  frame(WsOpcode::kClose, going_away);
  (void)below_->write(out_, std::chrono::steady_clock::now());
}

void WsCarrier::shutdown() noexcept { below_->shutdown(); }

void WsCarrier::take(const WsParser::Event& event) {
  begin_ += event.used;
  switch (event.kind) {
    case WsParser::Event::Kind::kData:
      data_ = event.payload;
      controls_ = 0;
      return;
    case WsParser::Event::Kind::kPing: {
      base::MutexLock lock(mu_);
      pong_.emplace(event.payload.begin(), event.payload.end());
      ++controls_;
      return;
    }
    case WsParser::Event::Kind::kClose:
      closed_ = true;
      return;
    case WsParser::Event::Kind::kPong:
      ++controls_;
      return;
    case WsParser::Event::Kind::kNeedMore:
      return;
  }
}

base::Result<std::size_t> WsCarrier::read(std::span<std::byte> into, Deadline deadline) {
  bool waited = false;
  while (data_.empty() && !closed_) {
    if (begin_ == end_) {
      // The carrier below only waits when it has nothing: pings and empty frames could keep us here.
      if (std::exchange(waited, true) && std::chrono::steady_clock::now() >= deadline) {
        return base::errno_error(ETIMEDOUT, "websocket: no data");
      }
      auto got = below_->read(buffer_, deadline);
      if (!got) return std::move(got).error();
      if (*got == 0) {
        if (!parser_.at_boundary()) return broken("connection ended inside a message");
        return std::size_t{0};
      }
      begin_ = 0;
      end_ = *got;
    }
    auto event = parser_.step(std::span(buffer_).subspan(begin_, end_ - begin_));
    if (!event) return std::move(event).error();
    take(*event);
    if (controls_ > kMaxWsControlRun) return broken("too many control frames without data");
  }
  const auto size = std::min(into.size(), data_.size());
  if (size > 0) std::memcpy(into.data(), data_.data(), size);
  data_ = data_.subspan(size);
  return size;
}

// Appends one frame to out_, with a mask nobody can foresee when we are the client (section 10.3).
void WsCarrier::frame(WsOpcode opcode, wire::ByteView payload) {
  std::optional<std::array<std::byte, 4>> mask;
  if (role_ == WsRole::kClient) {
    if (random_used_ == random_.size()) {
      while (::getrandom(random_.data(), random_.size(), 0) != static_cast<ssize_t>(random_.size())) {
      }
      random_used_ = 0;
    }
    mask.emplace();
    std::copy_n(random_.begin() + static_cast<std::ptrdiff_t>(random_used_), 4, mask->begin());
    random_used_ += 4;
  }
  append_ws_frame(out_, opcode, true, payload, mask);
}

base::Result<void> WsCarrier::write(wire::ByteView bytes, Deadline deadline) {
  while (!bytes.empty()) {
    out_.clear();
    std::optional<wire::Bytes> pong;
    {
      base::MutexLock lock(mu_);
      pong = std::move(pong_);
      pong_.reset();
    }
    if (pong) frame(WsOpcode::kPong, *pong);
    const auto part = bytes.first(std::min(bytes.size(), kMaxWritten));
    frame(WsOpcode::kBinary, part);
    if (auto done = below_->write(out_, deadline); !done) return done;
    bytes = bytes.subspan(part.size());
  }
  return {};
}

}  // namespace nearbox::channel
