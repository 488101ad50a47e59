// SPDX-License-Identifier: Apache-2.0
#include "client/channel/frame.h"

#include <cstring>

namespace nearbox::channel {
namespace {

using wire::FrameType;
using wire::kFrameHeaderBytes;
using wire::kMaxFramePayload;

bool may_come_in_pieces(FrameType type) {
  return type == FrameType::kCall || type == FrameType::kEnd || type == FrameType::kNote;
}

base::Error broken(const char* what) { return base::errno_error(EPROTO, what); }

}  // namespace

void append_frame(wire::Bytes& out, FrameType type, std::uint8_t flags, std::uint16_t code,
                  std::uint32_t call_id, wire::ByteView payload) {
  wire::FrameHeader head;
  head.length = static_cast<std::uint32_t>(payload.size());
  head.type = type;
  head.flags = flags;
  head.code = code;
  head.call_id = call_id;
  out.reserve(out.size() + kFrameHeaderBytes + payload.size());
  wire::Writer writer(out);
  wire::header_fields(writer, head);
  out.insert(out.end(), payload.begin(), payload.end());
}

base::Result<wire::FrameHeader> parse_header(wire::ByteView bytes) {
  wire::FrameHeader head;
  wire::Reader reader(bytes.first(std::min(bytes.size(), kFrameHeaderBytes)));
  wire::header_fields(reader, head);
  if (!reader.done()) return broken("frame header too short");
  if (head.length > kMaxFramePayload) return broken("frame longer than 32 KiB");
  if (head.type < FrameType::kHello || head.type > FrameType::kNote) return broken("unknown frame type");
  if ((head.flags & ~wire::kFlagMore) != 0) return broken("unknown frame flags");
  if ((head.flags & wire::kFlagMore) != 0 && (!may_come_in_pieces(head.type) || head.length == 0)) {
    return broken("frame cannot be a piece");
  }
  return head;
}

FrameReader::FrameReader(Carrier& carrier)
    : carrier_(carrier),
      buffer_(2 * (kMaxFramePayload + kFrameHeaderBytes)),
      last_byte_(std::chrono::steady_clock::now()) {}

base::Result<std::optional<Frame>> FrameReader::next(Deadline deadline) {
  while (true) {
    const auto have = wire::ByteView(buffer_).subspan(begin_, end_ - begin_);
    if (have.size() >= kFrameHeaderBytes) {
      auto head = parse_header(have);
      if (!head) return std::move(head).error();
      const std::size_t size = kFrameHeaderBytes + head->length;
      if (have.size() >= size) {
        begin_ += size;
        return std::optional<Frame>(Frame{*head, have.subspan(kFrameHeaderBytes, head->length)});
      }
    }
    // Room for a whole frame behind begin_, so that a frame is never in two parts.
    if (begin_ > 0 && buffer_.size() - begin_ < kMaxFramePayload + kFrameHeaderBytes) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, have.size());
      begin_ = 0;
      end_ = have.size();
    }
    auto got = carrier_.read(std::span(buffer_).subspan(end_), deadline);
    if (!got) return std::move(got).error();
    if (*got == 0) {
      if (begin_ == end_) return std::optional<Frame>{};
      return broken("connection ended inside a frame");
    }
    end_ += *got;
    bytes_in_ += *got;
    last_byte_ = std::chrono::steady_clock::now();
  }
}

base::Result<std::optional<wire::ByteView>> Assembler::add(const Frame& frame) {
  using Whole = std::optional<wire::ByteView>;
  const auto key = (static_cast<std::uint64_t>(frame.head.type) << 32) | frame.head.call_id;
  const bool more = (frame.head.flags & wire::kFlagMore) != 0;
  auto it = partial_.find(key);
  if (it == partial_.end()) {
    if (!more) return Whole(frame.payload);
    if (partial_.size() >= wire::kMaxPartialMessages) return broken("too many messages in pieces");
    it = partial_.emplace(key, Partial{frame.head.code, {}}).first;
  }
  auto& part = it->second;
  if (part.code != frame.head.code) return broken("pieces of one message disagree");
  if (part.bytes.size() + frame.payload.size() > kMaxAssembled) return broken("message longer than 2 MiB");
  part.bytes.insert(part.bytes.end(), frame.payload.begin(), frame.payload.end());
  if (more) return Whole{};
  whole_ = std::move(part.bytes);
  partial_.erase(it);
  return Whole(wire::ByteView(whole_));
}

}  // namespace nearbox::channel
