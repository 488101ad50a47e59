// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <unordered_map>

#include "client/wire/messages.h"

namespace nearbox::channel {

// The order in which one end of a connection sends its frames.
//
// Two classes: small frames first, in order; then bulk, one frame of each stream in turn. What
// belongs to one stream keeps its order, so an end never overtakes its call's chunks.
// Owns:    the bytes queued.
// Threads: none of its own; its owner holds a lock.
// Bounds:  none of its own: the owner looks at *_bytes() before it pushes. At most
//          kMaxPartialMessages messages are in pieces at any time.
class FrameQueue {
 public:
  // A stream is a call (kCall, kChunk, kEnd, kCancel) or one of the two note lanes.
  using Stream = std::uint64_t;
  static Stream call_stream(std::uint32_t call_id) { return call_id; }
  static Stream note_stream(std::uint32_t lane) { return (std::uint64_t{1} << 32) | lane; }

  enum class Class : std::uint8_t { kSmall, kBulk };

  // A message of any size up to kMaxAssembled. kSmall: ahead of all bulk when it fits one frame and
  // its stream holds nothing; else in the stream's turn.
  void push(Stream stream, wire::FrameType type, std::uint16_t code, std::uint32_t call_id,
            wire::Bytes payload, Class cls = Class::kSmall);
  // A ping, pong or credit: belongs to no order but that of the small class.
  void push_small(wire::FrameType type, std::uint32_t call_id, wire::ByteView payload);

  // Appends what is sent next: all small frames up to kSmallBatch bytes, or kBulkBatch bulk frames.
  // False: there is nothing.
  bool next(wire::Bytes& out);

  // Drops the stream's chunks that were not sent yet (the call was cancelled).
  void drop_chunks(Stream stream);
  // Drops the stream when none of it was sent: true; else it stays.
  bool drop_unsent(Stream stream);
  void clear();

  bool empty() const { return small_.empty() && streams_.empty(); }
  std::size_t small_bytes() const { return small_bytes_; }
  std::size_t bulk_bytes() const { return bulk_bytes_; }
  std::size_t stream_bytes(Stream stream) const;

 private:
  static constexpr std::size_t kSmallBatch = 64 * 1024;
  static constexpr int kBulkBatch = 3;  // frames, 96 KiB: a millisecond at 1 Gbit/s, which small ones wait
  struct Item {
    wire::FrameType type{};
    std::uint16_t code = 0;
    std::uint32_t call_id = 0;
    std::size_t sent = 0;  // bytes of payload
    wire::Bytes payload;
  };
  struct StreamQueue {
    std::deque<Item> items;
    std::size_t bytes = 0;
    bool in_pieces = false;  // its first item holds one of the kMaxPartialMessages places
  };
  static bool needs_place(const Item& item) {
    return item.type != wire::FrameType::kChunk && item.payload.size() > wire::kMaxFramePayload;
  }
  void enter(Stream stream, StreamQueue& queue);
  void next_bulk(wire::Bytes& out);
  void release_place(StreamQueue& queue);

  std::deque<wire::Bytes> small_;
  std::size_t small_bytes_ = 0;
  std::unordered_map<Stream, StreamQueue> streams_;  // those that hold something
  std::deque<Stream> turn_;     // streams that may send a frame now; a name may be of a stream gone
  std::deque<Stream> waiting_;  // streams whose first item waits for a place
  std::size_t places_taken_ = 0;
  std::size_t bulk_bytes_ = 0;
};

}  // namespace nearbox::channel
