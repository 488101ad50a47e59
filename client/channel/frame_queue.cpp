// SPDX-License-Identifier: Apache-2.0
#include "client/channel/frame_queue.h"

#include <algorithm>

#include "client/channel/frame.h"

namespace nearbox::channel {

using wire::FrameType;
using wire::kMaxFramePayload;

void FrameQueue::push(Stream stream, FrameType type, std::uint16_t code, std::uint32_t call_id,
                      wire::Bytes payload, Class cls) {
  auto it = streams_.find(stream);
  if (it == streams_.end() && cls == Class::kSmall && payload.size() <= kMaxFramePayload) {
    wire::Bytes frame;
    append_frame(frame, type, 0, code, call_id, payload);
    small_bytes_ += frame.size();
    small_.push_back(std::move(frame));
    return;
  }
  const bool fresh = it == streams_.end();
  if (fresh) it = streams_.try_emplace(stream).first;
  auto& queue = it->second;
  queue.bytes += payload.size();
  bulk_bytes_ += payload.size();
  queue.items.push_back(Item{type, code, call_id, 0, std::move(payload)});
  if (fresh) enter(stream, queue);
}

void FrameQueue::push_small(FrameType type, std::uint32_t call_id, wire::ByteView payload) {
  wire::Bytes frame;
  append_frame(frame, type, 0, 0, call_id, payload);
  small_bytes_ += frame.size();
  small_.push_back(std::move(frame));
}

// Puts a stream whose first item is new in line: for its turn, or for a place first.
void FrameQueue::enter(Stream stream, StreamQueue& queue) {
  if (!needs_place(queue.items.front())) {
    turn_.push_back(stream);
  } else if (places_taken_ < wire::kMaxPartialMessages) {
    ++places_taken_;
    queue.in_pieces = true;
    turn_.push_back(stream);
  } else {
    waiting_.push_back(stream);
  }
}

void FrameQueue::release_place(StreamQueue& queue) {
  if (!queue.in_pieces) return;
  queue.in_pieces = false;
  --places_taken_;
  while (!waiting_.empty() && places_taken_ < wire::kMaxPartialMessages) {
    const Stream stream = waiting_.front();
    waiting_.pop_front();
    enter(stream, streams_.at(stream));
  }
}

bool FrameQueue::next(wire::Bytes& out) {
  if (!small_.empty()) {
    std::size_t taken = 0;
    while (!small_.empty() && (taken == 0 || taken + small_.front().size() <= kSmallBatch)) {
      taken += small_.front().size();
      small_bytes_ -= small_.front().size();
      out.insert(out.end(), small_.front().begin(), small_.front().end());
      small_.pop_front();
    }
    return true;
  }
  if (turn_.empty()) return false;
  for (int i = 0; i < kBulkBatch && !turn_.empty(); ++i) next_bulk(out);
  return true;
}

void FrameQueue::next_bulk(wire::Bytes& out) {
  const Stream stream = turn_.front();
  turn_.pop_front();
  auto& queue = streams_.at(stream);
  auto& item = queue.items.front();
  const std::size_t size = std::min(item.payload.size() - item.sent, kMaxFramePayload);
  const bool last = item.sent + size == item.payload.size();
  const auto flags = last || item.type == FrameType::kChunk ? std::uint8_t{0} : wire::kFlagMore;
  append_frame(out, item.type, flags, item.code, item.call_id,
               wire::ByteView(item.payload).subspan(item.sent, size));
  item.sent += size;
  queue.bytes -= size;
  bulk_bytes_ -= size;
  if (!last) {
    turn_.push_back(stream);
    return;
  }
  queue.items.pop_front();
  release_place(queue);
  if (queue.items.empty()) {
    streams_.erase(stream);
  } else {
    enter(stream, queue);
  }
}

void FrameQueue::drop_chunks(Stream stream) {
  const auto it = streams_.find(stream);
  if (it == streams_.end()) return;
  auto& queue = it->second;
  // A stream with chunks never waits for a place with its first item unless that is its end.
  std::erase_if(queue.items, [&](const Item& item) {
    if (item.type != FrameType::kChunk) return false;
    queue.bytes -= item.payload.size() - item.sent;
    bulk_bytes_ -= item.payload.size() - item.sent;
    return true;
  });
  if (queue.in_pieces || std::find(waiting_.begin(), waiting_.end(), stream) != waiting_.end()) return;
  std::erase(turn_, stream);
  if (queue.items.empty()) {
    streams_.erase(it);
  } else {
    enter(stream, queue);
  }
}

bool FrameQueue::drop_unsent(Stream stream) {
  const auto it = streams_.find(stream);
  if (it == streams_.end() || it->second.items.front().sent > 0) return false;
  bulk_bytes_ -= it->second.bytes;
  std::erase(turn_, stream);
  std::erase(waiting_, stream);
  release_place(it->second);
  streams_.erase(stream);
  return true;
}

void FrameQueue::clear() { *this = FrameQueue(); }

std::size_t FrameQueue::stream_bytes(Stream stream) const {
  const auto it = streams_.find(stream);
  return it == streams_.end() ? 0 : it->second.bytes;
}

}  // namespace nearbox::channel
