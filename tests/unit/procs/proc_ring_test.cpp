// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_ring.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace nearbox::agent {
namespace {

using wire::ProcStream;

TEST(ProcRing, KeepsStreamsApartAndInOrder) {
  ProcRing ring(100);
  ring.append(ProcStream::kStdout, wire::as_view("one "));
  ring.append(ProcStream::kStdout, wire::as_view("two "));
  ring.append(ProcStream::kStderr, wire::as_view("oh"));
  EXPECT_EQ(ring.end(), 10U);
  const auto first = ring.piece(2, 100);
  EXPECT_EQ(first.stream, ProcStream::kStdout);
  EXPECT_EQ(wire::as_text(first.data), "e two ");
  EXPECT_EQ(wire::as_text(ring.piece(8, 1).data), "o");
  EXPECT_EQ(ring.piece(9, 9).stream, ProcStream::kStderr);
}

TEST(ProcRing, DropsTheOldestWhenFull) {
  ProcRing ring(10);
  ring.append(ProcStream::kStdout, wire::as_view("0123456789"));
  EXPECT_EQ(ring.room(), 0U);
  ring.append(ProcStream::kStderr, wire::as_view("abc"));
  EXPECT_EQ(ring.begin(), 3U);
  EXPECT_EQ(wire::as_text(ring.piece(3, 99).data), "3456789");
  ring.append(ProcStream::kStdout, wire::as_view("a text longer than all of it"));
  EXPECT_EQ(ring.size(), 10U);
  EXPECT_EQ(wire::as_text(ring.piece(ring.begin(), 99).data), " all of it");
}

TEST(ProcRing, BoundsItsRecords) {
  ProcRing ring(1024 * 1024);
  for (std::size_t i = 0; i < ring.max_records() + 10; ++i) {
    ring.append(i % 2 == 0 ? ProcStream::kStdout : ProcStream::kStderr, wire::as_view("x"));
  }
  EXPECT_EQ(ring.size(), ring.max_records());
  EXPECT_EQ(ring.room(), 0U) << "a held process must stop, though bytes would fit";
  ring.trim(ring.end());
  EXPECT_EQ(ring.room(), ring.capacity());
}

// Property: the ring is the tail of everything appended, each byte with its stream.
TEST(ProcRingModel, IsTheTailOfWhatWasWritten) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    const std::size_t capacity = 1 + rng() % 70'000;
    ProcRing ring(capacity);
    std::string bytes;
    std::string streams;
    std::uint64_t begin = 0;
    for (int step = 0; step < 400; ++step) {
      const auto choice = rng() % 10;
      if (choice < 6) {
        const std::string text(rng() % (rng() % 8 == 0 ? 2 * capacity : 300),
                               static_cast<char>('a' + rng() % 26));
        const auto stream = rng() % 2 == 0 ? ProcStream::kStdout : ProcStream::kStderr;
        ring.append(stream, wire::as_view(text));
        bytes += text;
        streams.append(text.size(), stream == ProcStream::kStdout ? 'o' : 'e');
        if (bytes.size() - begin > capacity) begin = bytes.size() - capacity;
      } else if (choice < 7) {
        const std::uint64_t to = rng() % (bytes.size() + 10);
        ring.trim(to);
        begin = std::clamp<std::uint64_t>(to, begin, bytes.size());
      } else if (begin < bytes.size()) {
        const std::uint64_t from = begin + rng() % (bytes.size() - begin);
        const auto piece = ring.piece(from, 1 + rng() % 5000);
        ASSERT_FALSE(piece.data.empty());
        ASSERT_EQ(wire::as_text(piece.data), std::string_view(bytes).substr(from, piece.data.size()));
        const char stream = piece.stream == ProcStream::kStdout ? 'o' : 'e';
        ASSERT_EQ(streams.substr(from, piece.data.size()), std::string(piece.data.size(), stream));
      }
      ASSERT_EQ(ring.begin(), begin) << "step " << step;
      ASSERT_EQ(ring.end(), bytes.size()) << "step " << step;
    }
  }
}

}  // namespace
}  // namespace nearbox::agent
