// SPDX-License-Identifier: Apache-2.0
// Writes the seeds of tests/fuzz/corpus: `make_corpus DIR`. Built on request; run it when a message
// changes, and commit what it writes.
#include <filesystem>
#include <fstream>
#include <string>
#include <sys/stat.h>

#include "client/channel/frame.h"
#include "client/channel/websocket.h"
#include "client/wire/operations.h"
#include "client/wire/tree.h"
#include "fs/journal/format.h"
#include "tests/fuzz/all_messages.h"
#include "tools/sandbox_server/envelope.h"

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

wire::Attr attr(std::uint32_t mode, std::uint64_t number) {
  wire::Attr out{};
  out.dev = 40 + number % 3;
  out.ino = 1000 * number;
  out.mode = mode;
  out.nlink = number % 2 == 0 ? 1 : 2;
  out.uid = 1000;
  out.gid = 1000;
  out.size = number * 5000;
  out.blocks = number * 16;
  out.mtime_ns = 1'700'000'000'123'456'789 + static_cast<std::int64_t>(number) * 1'000'000'000;
  out.ctime_ns = out.mtime_ns + static_cast<std::int64_t>(number % 2);
  out.version = number;
  out.birth = number % 3 == 0 ? 0 : wire::birth_of(out.ctime_ns) - static_cast<std::uint32_t>(number);
  return out;
}

void tree() {
  wire::TreeBlock top;
  top.attr = attr(S_IFDIR | 0755, 1);
  top.entries = {{"a", attr(S_IFREG | 0644, 2), {}},
                 {"link", attr(S_IFLNK | 0777, 3), "a"},
                 {"dir", attr(S_IFDIR | 0755, 4), {}},
                 {"pipe", attr(S_IFIFO | 0600, 5), {}}};
  wire::TreeBlock below;
  below.path = "dir";
  below.attr = attr(S_IFDIR | 0755, 4);
  below.flags = wire::kTreeFailed;
  below.error = 13;
  wire::TreeBlock crossed;
  crossed.path = "dir/other";
  crossed.attr = attr(S_IFDIR | 0755, 6);
  crossed.flags = wire::kTreeCrossed | wire::kTreeMore;
  crossed.entries = {{"old", attr(S_IFREG, 7), {}}};
  crossed.entries[0].attr.mtime_ns = -1;
  wire::TreeEncoder one;
  wire::Bytes single;
  one.add(top, single);
  put("tree", "one", single);
  wire::TreeEncoder all;
  wire::Bytes several;
  for (const auto& block : {top, below, crossed}) all.add(block, several);
  put("tree", "several", several);
}

wire::Bytes journal_file(char mode, journal::FileKind kind, journal::Batch& batch) {
  const journal::FileHeader header{kind, 0x5a17, 3, 41};
  batch.seal(header.salt, header.next_seq);
  wire::Bytes out{static_cast<std::byte>(mode)};
  const auto head = journal::encode_header(header);
  out.insert(out.end(), head.begin(), head.end());
  for (const auto& piece : batch.iov()) {
    const auto* const at = static_cast<const std::byte*>(piece.iov_base);
    out.insert(out.end(), at, at + piece.iov_len);
  }
  return out;
}

void journal_files() {
  wire::Op op;
  op.op_id = 41;
  op.kind = wire::OpKind::kWrite;
  op.path = "dir/a";
  op.data.assign(20, std::byte{1});
  const auto encoded = wire::encode(op);
  const wire::Bytes before(10, std::byte{2});
  const std::vector<journal::Part> parts = {{1, before}, {2, {}}};
  const journal::Record record{7, "/mnt/box", "/home/user", encoded, parts};
  for (const char mode : {'\0', '\1'}) {
    journal::Batch records;
    journal::add_record(records, journal::RecordType::kNew, 0, record);
    journal::add_record(records, journal::RecordType::kNew, 0, {8, "", "/", {}, {}});
    journal::add_record(records, journal::RecordType::kMoved, 12, record);
    put("journal", mode == '\0' ? "segment" : "segment-unchecked",
        journal_file(mode, journal::FileKind::kSegment, records));
    journal::Batch acks;
    const std::vector<journal::Range> ranges = {{5, 2}, {12, 1}};
    journal::add_snapshot(acks, 41, ranges);
    put("journal", mode == '\0' ? "acks" : "acks-unchecked",
        journal_file(mode, journal::FileKind::kAcks, acks));
  }
  const auto payload = [](journal::Batch& batch) {
    auto out = journal_file(2, journal::FileKind::kSegment, batch);
    const auto skipped = journal::kFileHeaderBytes + journal::kRecordHeaderBytes;
    out.erase(out.begin() + 1, out.begin() + 1 + static_cast<std::ptrdiff_t>(skipped));
    return out;
  };
  journal::Batch one, two, three;
  journal::add_record(one, journal::RecordType::kNew, 0, record);
  put("journal", "record", payload(one));
  const std::vector<journal::Range> ranges = {{1, 4}, {9, 1}, {11, 30}};
  journal::add_acks(two, ranges);
  put("journal", "ranges", payload(two));
  journal::add_snapshot(three, 41, ranges);
  put("journal", "snapshot", payload(three));
}

void server() {
  using sandbox_server::encode_envelope;
  put("envelope", "stream",
      encode_envelope(0, R"({"process":{"pid":42}})") + encode_envelope(1, "") +
          encode_envelope(sandbox_server::kFlagEnd, "{}"));
  const std::string part =
      "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a/\\\"b\\\".txt\"\r\n"
      "Content-Type: application/octet-stream\r\n\r\nbytes\r\n--X not yet\r\n";
  put("multipart", "parts",
      std::string("\x07multipart/form-data; boundary=XX\n") + part + part + "--XX--\r\nepilogue");
  put("multipart", "quoted",
      "\x40multipart/form-data; charset=x; Boundary=\"X X\"\npreamble\r\n--X X\r\n"
      "Content-Disposition: form-data; name=a\r\n\r\n\r\n--X X--");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  root = argv[1];
  messages();
  frames();
  websocket();
  upgrade();
  tree();
  journal_files();
  server();
  return 0;
}
