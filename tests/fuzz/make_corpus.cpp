// SPDX-License-Identifier: Apache-2.0
// Writes the seeds of tests/fuzz/corpus: `make_corpus DIR`. Built on request; run it when a message
// changes, and commit what it writes.
#include <filesystem>
#include <fstream>
#include <string>

#include "client/channel/frame.h"
#include "client/channel/websocket.h"
#include "tests/fuzz/all_messages.h"

namespace {

using namespace nearbox;
using wire::FrameType;

std::filesystem::path root;

void put(const std::string& target, const std::string& name, wire::ByteView bytes) {
  std::filesystem::create_directories(root / target);
  std::ofstream file(root / target / name, std::ios::binary);
  file << wire::as_text(bytes);
}
void put(const std::string& target, const std::string& name, const std::string& text) {
  put(target, name, wire::as_view(text));
}

// Fills a message with something in every field, by reading it back from bytes made for that.
class Filler {
 public:
  static constexpr bool kReads = true;
  template <class T>
  void num(T& value) {
    value = static_cast<T>(++next_ % 100 == 0 ? ++next_ : next_);
  }
  void bytes(std::string& value, std::size_t) { value = "name" + std::to_string(++next_); }
  void bytes(wire::Bytes& value, std::size_t) { value.assign(5, static_cast<std::byte>(++next_)); }
  template <std::size_t N>
  void fixed(std::array<std::byte, N>& value) {
    value.fill(std::byte{7});
  }
  template <class T>
  void list(std::vector<T>& values, std::size_t) {
    values.resize(2);
    for (auto& value : values) fields(*this, value);
  }
  void strings(std::vector<std::string>& values, std::size_t, std::size_t) { values = {"a", "bc"}; }

 private:
  unsigned next_ = 0;
};

void messages() {
  test::for_each_message([&]<class M>(std::size_t index) {
    for (const bool filled : {false, true}) {
      M message{};
      Filler filler;
      if (filled) fields(filler, message);
      wire::Bytes out{static_cast<std::byte>(index)};
      const auto body = wire::encode(message);
      out.insert(out.end(), body.begin(), body.end());
      put("messages", std::to_string(index) + (filled ? "-full" : "-empty"), out);
    }
  });
}

void frames() {
  wire::Bytes session;
  channel::append_frame(session, FrameType::kHello, 0, 0, 0, wire::encode(wire::Hello{}));
  put("handshake", "hello", session);
  wire::Bytes welcome;
  channel::append_frame(welcome, FrameType::kWelcome, 0, 0, 0, wire::encode(wire::Welcome{}));
  put("handshake", "welcome", welcome);
  wire::Bytes refused;
  channel::append_frame(refused, FrameType::kRefused, 0, 0, 0, wire::encode(wire::Refused{13, "no"}));
  put("handshake", "refused", refused);

  const auto head = wire::encode(wire::CallHead{1000, 50});
  channel::append_frame(session, FrameType::kCall, 0, 1, 1, head);
  channel::append_frame(session, FrameType::kCall, wire::kFlagMore, 5, 2, head);
  channel::append_frame(session, FrameType::kNote, wire::kFlagMore, 32, 0, wire::Bytes(20));
  channel::append_frame(session, FrameType::kNote, 0, 32, 0, wire::Bytes(3));
  channel::append_frame(session, FrameType::kCall, 0, 5, 2, wire::Bytes(9));
  channel::append_frame(session, FrameType::kCredit, 0, 0, 1, wire::Bytes(4, std::byte{1}));
  channel::append_frame(session, FrameType::kPing, 0, 0, 0, wire::Bytes(8));
  channel::append_frame(session, FrameType::kPong, 0, 0, 0, wire::Bytes(8));
  channel::append_frame(session, FrameType::kCancel, 0, 0, 1, {});
  put("frames", "client", session);
  channel::append_frame(welcome, FrameType::kChunk, 0, 0, 1, wire::Bytes(40));
  channel::append_frame(welcome, FrameType::kEnd, wire::kFlagMore, 2, 1, wire::Bytes(4));
  channel::append_frame(welcome, FrameType::kEnd, 0, 2, 1, wire::Bytes(4));
  put("frames", "agent", welcome);
}

void websocket() {
  using channel::WsOpcode;
  for (const bool masked : {false, true}) {
    std::optional<std::array<std::byte, 4>> mask;
    if (masked) mask = {std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
    wire::Bytes out;
    channel::append_ws_frame(out, WsOpcode::kBinary, true, wire::Bytes(10), mask);
    channel::append_ws_frame(out, WsOpcode::kBinary, false, wire::Bytes(200), mask);
    channel::append_ws_frame(out, WsOpcode::kPing, true, wire::Bytes(3), mask);
    channel::append_ws_frame(out, WsOpcode::kContinuation, true, wire::Bytes(0), mask);
    channel::append_ws_frame(out, WsOpcode::kPong, true, {}, mask);
    channel::append_ws_frame(out, WsOpcode::kClose, true, {}, mask);
    put("websocket", masked ? "client" : "server", out);
  }
}

void upgrade() {
  put("upgrade", "request",
      "GET /agent HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
  put("upgrade", "plain", "GET / HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n");
  put("upgrade", "answer",
      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n");
  put("upgrade", "refusal", "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  root = argv[1];
  messages();
  frames();
  websocket();
  upgrade();
  return 0;
}
