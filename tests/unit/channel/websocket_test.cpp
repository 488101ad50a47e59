// SPDX-License-Identifier: Apache-2.0
#include "client/channel/websocket.h"

#include <random>

#include <gtest/gtest.h>

#include "client/channel/upgrade.h"
#include "client/channel/ws_client.h"
#include "client/channel/ws_server.h"
#include "tests/unit/channel/memory_carrier.h"
#include "tests/unit/channel/test_agent.h"

namespace nearbox::test {
namespace {

using channel::append_ws_frame;
using channel::WsCarrier;
using channel::WsOpcode;
using channel::WsParser;
using channel::WsRole;
using Kind = WsParser::Event::Kind;
using Mask = std::array<std::byte, 4>;

wire::Bytes hex(std::initializer_list<int> values) {
  wire::Bytes out;
  for (const int value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

// All events of `bytes`, cut into steps of at most `step` bytes: the data, and a letter per control frame.
struct Parsed {
  std::string data;
  std::string controls;
  int error = 0;
  bool at_boundary = false;
};
Parsed parse(WsRole role, wire::Bytes bytes, std::size_t step = 1 << 20) {
  WsParser parser(role);
  Parsed out;
  std::size_t at = 0;
  while (at < bytes.size()) {
    const auto in = std::span(bytes).subspan(at, std::min(step, bytes.size() - at));
    auto event = parser.step(in);
    if (!event) {
      out.error = event.error().as_errno();
      return out;
    }
    at += event->used;
    if (event->kind == Kind::kData) out.data += wire::as_text(event->payload);
    if (event->kind == Kind::kPing)
      out.controls += "<ping " + std::string(wire::as_text(event->payload)) + ">";
    if (event->kind == Kind::kPong)
      out.controls += "<pong " + std::string(wire::as_text(event->payload)) + ">";
    if (event->kind == Kind::kClose) out.controls += "<close>";
  }
  out.at_boundary = parser.at_boundary();
  return out;
}

// RFC 6455 section 1.3.
TEST(WebSocket, AcceptKeyOfTheRfc) {
  EXPECT_EQ(channel::websocket_accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

// RFC 6455 section 5.7; its text examples as binary, since text is refused.
TEST(WebSocket, ExamplesOfTheRfc) {
  EXPECT_EQ(parse(WsRole::kClient, hex({0x82, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f})).data, "Hello");
  const auto masked = hex({0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58});
  EXPECT_EQ(parse(WsRole::kServer, masked).data, "Hello");
  wire::Bytes made;
  append_ws_frame(made, WsOpcode::kBinary, true, wire::as_view("Hello"),
                  Mask{std::byte{0x37}, std::byte{0xfa}, std::byte{0x21}, std::byte{0x3d}});
  EXPECT_EQ(made, masked);
  const auto fragments = parse(
      WsRole::kClient, hex({0x02, 0x03, 0x48, 0x65, 0x6c, 0x89, 0x02, 'h', 'i', 0x80, 0x02, 0x6c, 0x6f}));
  EXPECT_EQ(fragments.data, "Hello");
  EXPECT_EQ(fragments.controls, "<ping hi>");
  EXPECT_TRUE(fragments.at_boundary);
  const auto pong = hex({0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58});
  EXPECT_EQ(parse(WsRole::kServer, pong).controls, "<pong Hello>");
  for (const std::size_t size : {std::size_t{256}, std::size_t{65536}}) {
    wire::Bytes bytes;
    append_ws_frame(bytes, WsOpcode::kBinary, true, wire::Bytes(size, std::byte{'a'}), std::nullopt);
    EXPECT_EQ(bytes[1], static_cast<std::byte>(size == 256 ? 0x7e : 0x7f));
    EXPECT_EQ(parse(WsRole::kClient, bytes).data, std::string(size, 'a'));
  }
}

TEST(WebSocket, RefusesWhatTheRfcForbids) {
  const std::pair<const char*, wire::Bytes> cases[] = {
      {"text", hex({0x81, 0x01, 'a'})},
      {"reserved bit", hex({0xc2, 0x01, 'a'})},
      {"opcode 3", hex({0x83, 0x00})},
      {"opcode 11", hex({0x8b, 0x00})},
      {"a server's mask", hex({0x82, 0x81, 1, 2, 3, 4, 'a'})},
      {"continuation of nothing", hex({0x80, 0x01, 'a'})},
      {"message in a message", hex({0x02, 0x01, 'a', 0x82, 0x01, 'b'})},
      {"ping in fragments", hex({0x09, 0x00})},
      {"long ping", hex({0x89, 0x7e, 0x00, 0x7e})},
      {"length 125 in two bytes", hex({0x82, 0x7e, 0x00, 0x7d})},
      {"length 65535 in eight bytes", hex({0x82, 0x7f, 0, 0, 0, 0, 0, 0, 0xff, 0xff})},
      {"above the limit", hex({0x82, 0x7f, 0, 0, 0, 0, 0, 0x10, 0, 1})},
      {"length with the top bit", hex({0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 1})},
      {"close of one byte", hex({0x88, 0x01, 0x03})},
      {"close code 999", hex({0x88, 0x02, 0x03, 0xe7})},
  };
  for (const auto& [name, bytes] : cases) EXPECT_EQ(parse(WsRole::kClient, bytes).error, EPROTO) << name;
  EXPECT_EQ(parse(WsRole::kServer, hex({0x82, 0x01, 'a'})).error, EPROTO) << "a client without a mask";
}

// Property: however a stream is cut into frames, fragments and reads, its bytes come out the same.
TEST(WebSocketModel, RandomFragmentation) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    const auto role = seed % 2 == 0 ? WsRole::kServer : WsRole::kClient;
    std::string data;
    std::string controls;
    wire::Bytes bytes;
    const auto mask = [&]() -> std::optional<Mask> {
      if (role == WsRole::kClient) return std::nullopt;
      return Mask{static_cast<std::byte>(rng()), static_cast<std::byte>(rng()), std::byte{1}, std::byte{2}};
    };
    bool inside = false;
    for (int i = 0; i < 50 || inside; ++i) {
      const bool fin = rng() % 3 == 0 || i > 60;
      std::string part(rng() % 7 == 0 ? rng() % 70'000 : rng() % 200, '\0');
      for (auto& c : part) c = static_cast<char>(rng());
      append_ws_frame(bytes, inside ? WsOpcode::kContinuation : WsOpcode::kBinary, fin, wire::as_view(part),
                      mask());
      inside = !fin;
      data += part;
      if (rng() % 4 == 0) {
        append_ws_frame(bytes, WsOpcode::kPing, true, wire::as_view("p"), mask());
        controls += "<ping p>";
      }
    }
    const auto parsed = parse(role, bytes, 1 + rng() % 3000);
    EXPECT_EQ(parsed.error, 0);
    EXPECT_EQ(parsed.controls, controls);
    EXPECT_TRUE(parsed.data == data);
    EXPECT_TRUE(parsed.at_boundary);
  }
}

TEST(WebSocket, UpgradesAndCarriesBytesBothWays) {
  auto [a, b] = socket_pair();
  std::jthread server([&, fd = std::make_shared<base::UniqueFd>(std::move(b))] {
    auto carrier = channel::accept_websocket(std::move(*fd), soon());
    ASSERT_TRUE(carrier) << carrier.error().message();
    wire::Bytes buffer(10'000);
    while (true) {
      auto got = (*carrier)->read(buffer, soon());
      ASSERT_TRUE(got) << got.error().message();
      if (*got == 0) return;
      ASSERT_TRUE((*carrier)->write(wire::ByteView(buffer).first(*got), soon()));
    }
  });
  auto carrier =
      channel::upgrade_websocket(carrier_of(std::move(a)), "host", "/agent", {{"X-Token", "t"}}, soon());
  ASSERT_TRUE(carrier) << carrier.error().message();
  wire::Bytes data(2'000'000);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = pattern(i);
  std::jthread writer([&] { EXPECT_TRUE((*carrier)->write(data, soon())); });
  wire::Bytes back;
  wire::Bytes buffer(30'000);
  while (back.size() < data.size()) {
    auto got = (*carrier)->read(buffer, soon());
    ASSERT_TRUE(got && *got > 0);
    back.insert(back.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(*got));
  }
  writer.join();
  EXPECT_TRUE(back == data);
  *carrier = nullptr;  // sends a close frame
}

TEST(WebSocket, AnswersAPingWithItsNextWrite) {
  auto [a, b] = memory_pair();
  WsCarrier carrier(std::move(a), WsRole::kServer);
  wire::Bytes in;
  append_ws_frame(in, WsOpcode::kPing, true, wire::as_view("are you there"), Mask{});
  append_ws_frame(in, WsOpcode::kBinary, true, wire::as_view("x"), Mask{});
  append_ws_frame(in, WsOpcode::kClose, true, {}, Mask{});
  ASSERT_TRUE(b->write(in, soon()));
  std::byte buffer[16];
  EXPECT_EQ(*carrier.read(buffer, soon()), 1u);
  EXPECT_EQ(*carrier.read(buffer, soon()), 0u);
  ASSERT_TRUE(carrier.write(wire::as_view("y"), soon()));
  wire::Bytes want;
  append_ws_frame(want, WsOpcode::kPong, true, wire::as_view("are you there"), std::nullopt);
  append_ws_frame(want, WsOpcode::kBinary, true, wire::as_view("y"), std::nullopt);
  wire::Bytes got(want.size());
  ASSERT_EQ(*b->read(got, soon()), want.size());
  EXPECT_EQ(got, want);
}

// Gives the same bytes for ever, as a peer does that never stops sending.
class EndlessCarrier final : public channel::Carrier {
 public:
  explicit EndlessCarrier(wire::Bytes bytes) : bytes_(std::move(bytes)) {}
  base::Result<std::size_t> read(std::span<std::byte> into, channel::Deadline) override {
    std::copy(bytes_.begin(), bytes_.end(), into.begin());
    return bytes_.size();
  }
  base::Result<void> write(wire::ByteView, channel::Deadline) override { return {}; }
  void shutdown() noexcept override {}

 private:
  const wire::Bytes bytes_;
};

TEST(WebSocket, AFloodWithoutDataKeepsNoReaderPastItsDeadline) {
  std::byte buffer[16];
  for (const auto opcode : {WsOpcode::kPing, WsOpcode::kPong}) {
    wire::Bytes frame;
    append_ws_frame(frame, opcode, true, {}, std::nullopt);
    WsCarrier carrier(std::make_unique<EndlessCarrier>(frame), WsRole::kClient);
    EXPECT_EQ(carrier.read(buffer, Clock::now()).error().as_errno(), ETIMEDOUT);
    EXPECT_EQ(carrier.read(buffer, soon()).error().as_errno(), EPROTO);
  }
  wire::Bytes empty;
  append_ws_frame(empty, WsOpcode::kBinary, true, {}, std::nullopt);
  WsCarrier carrier(std::make_unique<EndlessCarrier>(empty), WsRole::kClient);
  EXPECT_EQ(carrier.read(buffer, Clock::now() + std::chrono::milliseconds(10)).error().as_errno(), ETIMEDOUT);
}

TEST(WebSocket, ControlFramesBetweenDataAreWelcome) {
  wire::Bytes in;
  for (std::size_t i = 0; i < 2 * channel::kMaxWsControlRun; ++i) {
    append_ws_frame(in, WsOpcode::kPing, true, wire::as_view("p"), std::nullopt);
    if (i % 2 == 0) append_ws_frame(in, WsOpcode::kBinary, true, wire::as_view("x"), std::nullopt);
  }
  auto [a, b] = memory_pair();
  WsCarrier carrier(std::move(a), WsRole::kClient);
  ASSERT_TRUE(b->write(in, soon()));
  std::byte buffer[16];
  for (std::size_t i = 0; i < channel::kMaxWsControlRun; ++i) ASSERT_EQ(*carrier.read(buffer, soon()), 1u);
}

TEST(WebSocket, AStreamThatEndsInsideAMessageIsBroken) {
  auto [a, b] = memory_pair();
  WsCarrier carrier(std::move(a), WsRole::kClient);
  ASSERT_TRUE(b->write(hex({0x82, 0x05, 'a'}), soon()));
  b->finish();
  std::byte buffer[16];
  EXPECT_EQ(*carrier.read(buffer, soon()), 1u);
  EXPECT_EQ(carrier.read(buffer, soon()).error().as_errno(), EPROTO);
}

// What the server says to a request, and the error it gives its caller.
std::pair<std::string, int> answer_to(const std::string& request) {
  auto [a, b] = memory_pair();
  EXPECT_TRUE(a->write(wire::as_view(request), soon()));
  a->finish();
  auto carrier = channel::accept_websocket(std::unique_ptr<channel::Carrier>(std::move(b)), soon());
  const int error = carrier ? 0 : carrier.error().as_errno();
  wire::Bytes buffer(4096);
  auto got = a->read(buffer, Clock::now());
  std::string text;
  if (got) text = wire::as_text(wire::ByteView(buffer).first(*got));
  return {text.substr(0, text.find("\r\n")), error};
}

TEST(WebSocket, RefusesOtherRequestsWithAnAnswer) {
  const std::string good =
      "GET /any/path?x=1 HTTP/1.1\r\nHost: h\r\nupgrade: WebSocket\r\nCONNECTION: keep-alive, Upgrade\r\n"
      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
  const auto with = [&](const std::string& from, const std::string& to) {
    auto text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  using Answer = std::pair<std::string, int>;
  const Answer bad{"HTTP/1.1 400 Bad Request", EPROTO};
  const Answer upgrade{"HTTP/1.1 426 Upgrade Required", EPROTO};
  EXPECT_EQ(answer_to(good), Answer("HTTP/1.1 101 Switching Protocols", 0));
  EXPECT_EQ(answer_to("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), upgrade);
  EXPECT_EQ(answer_to(with("Version: 13", "Version: 8")), upgrade);
  EXPECT_EQ(answer_to(with("keep-alive, Upgrade", "keep-alive")), upgrade);
  EXPECT_EQ(answer_to(with("GET", "POST")), bad);
  EXPECT_EQ(answer_to(with("HTTP/1.1", "HTTP/1.0")), bad);
  EXPECT_EQ(answer_to(with("25jZQ==", "")), bad);
  EXPECT_EQ(answer_to(with("Host: h", "Host h")), bad);
  EXPECT_EQ(answer_to("\r\n\r\n"), bad);
  EXPECT_EQ(answer_to("GET / HTTP/1.1\r\nX: " + std::string(9000, 'x')), Answer(bad.first, EMSGSIZE));
  EXPECT_EQ(answer_to("GET / HT"), Answer("", ECONNRESET));
}

TEST(WebSocket, TheClientChecksTheAnswer) {
  const auto error_of = [](const std::string& answer) {
    auto [a, b] = memory_pair();
    EXPECT_TRUE(b->write(wire::as_view(answer), soon()));
    b->finish();
    auto carrier = channel::upgrade_websocket(std::move(a), "h", "/", {{"X-Token", "secret"}}, soon());
    if (carrier) return 0;
    EXPECT_EQ(carrier.error().context.find("secret"), std::string::npos);
    return carrier.error().as_errno();
  };
  EXPECT_EQ(error_of("HTTP/1.1 403 Forbidden\r\n\r\n"), EACCES);
  EXPECT_EQ(error_of("HTTP/1.1 404 Not Found\r\n\r\n"), ENOENT);
  EXPECT_EQ(error_of("HTTP/1.1 502 Bad Gateway\r\n\r\n"), EAGAIN);
  EXPECT_EQ(error_of("HTTP/1.1 200 OK\r\n\r\n"), EPROTO);
  EXPECT_EQ(error_of("SSH-2.0-x\r\n\r\n"), EPROTO);
  EXPECT_EQ(error_of("HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"),
            EPROTO);
  EXPECT_EQ(error_of("HTTP"), ECONNRESET);
  auto [a, b] = memory_pair();
  auto injected = channel::upgrade_websocket(std::move(a), "h", "/", {{"X", "a\r\nY: b"}}, soon());
  ASSERT_FALSE(injected);
  EXPECT_EQ(injected.error().as_errno(), EINVAL);
}

}  // namespace
}  // namespace nearbox::test
