// SPDX-License-Identifier: Apache-2.0
#include "client/channel/frame_queue.h"

#include <map>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "client/channel/frame.h"

namespace nearbox::test {
namespace {

using channel::Frame;
using channel::FrameQueue;
using wire::FrameType;

std::vector<Frame> frames_of(const wire::Bytes& bytes) {
  std::vector<Frame> frames;
  wire::ByteView rest(bytes);
  while (!rest.empty()) {
    auto head = channel::parse_header(rest);
    EXPECT_TRUE(head);
    frames.push_back(Frame{*head, rest.subspan(wire::kFrameHeaderBytes, head->length)});
    rest = rest.subspan(wire::kFrameHeaderBytes + head->length);
  }
  return frames;
}

TEST(FrameQueue, AnEndDoesNotPassItsChunks) {
  FrameQueue queue;
  queue.push(1, FrameType::kChunk, 0, 1, wire::Bytes(50'000), FrameQueue::Class::kBulk);
  queue.push(1, FrameType::kEnd, 0, 1, {});
  queue.push(2, FrameType::kEnd, 0, 2, {});
  std::vector<std::pair<FrameType, std::uint32_t>> order;
  wire::Bytes out;
  while (out.clear(), queue.next(out)) {
    for (const auto& frame : frames_of(out)) order.emplace_back(frame.head.type, frame.head.call_id);
  }
  const std::vector<std::pair<FrameType, std::uint32_t>> want = {
      {FrameType::kEnd, 2}, {FrameType::kChunk, 1}, {FrameType::kChunk, 1}, {FrameType::kEnd, 1}};
  EXPECT_EQ(order, want);
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.bulk_bytes(), 0u);
}

TEST(FrameQueue, DropsWhatACancelledCallStillHas) {
  FrameQueue queue;
  queue.push(1, FrameType::kChunk, 0, 1, wire::Bytes(500'000), FrameQueue::Class::kBulk);
  wire::Bytes out;
  ASSERT_TRUE(queue.next(out));
  queue.push(1, FrameType::kEnd, 0, 1, wire::Bytes(100'000));
  queue.drop_chunks(1);
  EXPECT_EQ(queue.bulk_bytes(), 100'000u);
  out.clear();
  ASSERT_TRUE(queue.next(out));
  EXPECT_EQ(frames_of(out)[0].head.type, FrameType::kEnd);
  EXPECT_FALSE(queue.drop_unsent(1));
  queue.push(2, FrameType::kCall, 0, 2, wire::Bytes(100'000));
  EXPECT_TRUE(queue.drop_unsent(2));
  EXPECT_FALSE(queue.drop_unsent(2));
}

// Property: whatever is pushed comes out whole and in its stream's order, small before bulk, with no
// more messages in pieces than the receiver takes.
TEST(FrameQueueModel, KeepsOrderWithinStreams) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    FrameQueue queue;
    std::map<std::uint32_t, wire::Bytes> want;
    std::map<std::uint32_t, wire::Bytes> got;
    channel::Assembler assembler;
    wire::Bytes out;
    const auto take = [&] {
      out.clear();
      const bool small = queue.small_bytes() > 0;
      if (!queue.next(out)) return false;
      for (const auto& frame : frames_of(out)) {
        if (small) {
          EXPECT_EQ(frame.head.flags, 0);
        }
        auto whole = assembler.add(frame);
        EXPECT_TRUE(whole) << whole.error().context;
        if (!whole || !*whole) continue;
        auto& bytes = got[frame.head.call_id];
        bytes.insert(bytes.end(), (*whole)->begin(), (*whole)->end());
      }
      return true;
    };
    for (int step = 0; step < 250; ++step) {
      const auto id = static_cast<std::uint32_t>(1 + rng() % 40);
      const std::size_t size = rng() % 4 == 0 ? rng() % 200'000 : rng() % 500;
      wire::Bytes payload(size);
      for (auto& b : payload) b = static_cast<std::byte>(rng());
      want[id].insert(want[id].end(), payload.begin(), payload.end());
      const auto kind = rng() % 3;
      if (kind == 0) {
        queue.push(id, FrameType::kChunk, 0, id, std::move(payload), FrameQueue::Class::kBulk);
      } else {
        queue.push(id, FrameType::kEnd, 7, id, std::move(payload));
      }
      if (rng() % 3 == 0) take();
    }
    while (take()) {
    }
    EXPECT_EQ(queue.bulk_bytes(), 0u);
    EXPECT_EQ(queue.small_bytes(), 0u);
    for (const auto& [id, bytes] : want) ASSERT_EQ(got[id], bytes) << id;
  }
}

}  // namespace
}  // namespace nearbox::test
