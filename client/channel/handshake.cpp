// SPDX-License-Identifier: Apache-2.0
#include "client/channel/handshake.h"

#include "client/channel/frame.h"
#include "client/channel/mux_server.h"

namespace nearbox::channel {
namespace {

using wire::FrameType;

// Reads exactly `into`: no byte after the handshake may be taken from the carrier.
base::Result<void> read_exactly(Carrier& carrier, std::span<std::byte> into, Deadline deadline) {
  while (!into.empty()) {
    auto got = carrier.read(into, deadline);
    if (!got) return std::move(got).error();
    if (*got == 0) return base::errno_error(ECONNRESET, "connection closed before the handshake was done");
    into = into.subspan(*got);
  }
  return {};
}

struct FirstFrame {
  FrameType type{};
  wire::Bytes payload;
};

base::Result<FirstFrame> read_first(Carrier& carrier, Deadline deadline) {
  std::array<std::byte, wire::kFrameHeaderBytes> head_bytes{};
  if (auto done = read_exactly(carrier, head_bytes, deadline); !done) return std::move(done).error();
  auto head = parse_header(head_bytes);
  if (!head) return base::errno_error(EPROTO, "the other end does not speak nearbox's protocol");
  if (head->length > wire::kMaxHelloBytes) return base::errno_error(EPROTO, "handshake frame too long");
  FirstFrame first{head->type, wire::Bytes(head->length)};
  if (auto done = read_exactly(carrier, first.payload, deadline); !done) return std::move(done).error();
  return first;
}

template <class M>
base::Result<void> send_first(Carrier& carrier, FrameType type, const M& message, Deadline deadline) {
  wire::Bytes out;
  append_frame(out, type, 0, 0, 0, wire::encode(message));
  return carrier.write(out, deadline);
}

// What the other end wrote goes to terminals and logs: printable ASCII and UTF-8 bytes only.
std::string printable(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    out += u < 0x20 || u == 0x7f ? '?' : c;
  }
  return out;
}

}  // namespace

base::Result<wire::Hello> read_hello(Carrier& carrier, Deadline deadline) {
  auto first = read_first(carrier, deadline);
  if (!first) return std::move(first).error().during("hello");
  if (first->type != FrameType::kHello) return base::errno_error(EPROTO, "hello: another frame came first");
  auto hello = wire::decode<wire::Hello>(first->payload);
  if (!hello || hello->magic != wire::kHelloMagic) return base::errno_error(EPROTO, "hello: malformed");
  if (hello->role != wire::Role::kControl && hello->role != wire::Role::kBulk) {
    return base::errno_error(EPROTO, "hello: unknown role");
  }
  hello->build = printable(hello->build);
  return std::move(*hello);
}

base::Result<void> send_refused(Carrier& carrier, const wire::Refused& refused, Deadline deadline) {
  return send_first(carrier, FrameType::kRefused, refused, deadline);
}

base::Result<void> send_welcome(Carrier& carrier, const wire::Welcome& welcome, Deadline deadline) {
  return send_first(carrier, FrameType::kWelcome, welcome, deadline);
}

base::Result<void> send_hello(Carrier& carrier, const wire::Hello& hello, Deadline deadline) {
  return send_first(carrier, FrameType::kHello, hello, deadline);
}

base::Result<wire::Welcome> read_welcome(Carrier& carrier, Deadline deadline) {
  auto first = read_first(carrier, deadline);
  if (!first) return std::move(first).error().during("welcome");
  if (first->type == FrameType::kRefused) {
    const auto refused = wire::decode<wire::Refused>(first->payload);
    if (!refused || refused->error <= 0) return base::errno_error(EPROTO, "welcome: malformed refusal");
    return base::errno_error(refused->error, "the agent refused the connection: " + printable(refused->text));
  }
  if (first->type != FrameType::kWelcome) return base::errno_error(EPROTO, "welcome: another frame came");
  auto welcome = wire::decode<wire::Welcome>(first->payload);
  if (!welcome) return base::errno_error(EPROTO, "welcome: malformed");
  if (welcome->version != wire::kProtocolVersion) {
    return base::errno_error(EPROTO, "the agent speaks protocol version " + std::to_string(welcome->version));
  }
  welcome->build = printable(welcome->build);
  return std::move(*welcome);
}

}  // namespace nearbox::channel
