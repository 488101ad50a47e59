// SPDX-License-Identifier: Apache-2.0
#include <random>

#include <gtest/gtest.h>

#include "client/wire/chunker.h"
#include "client/wire/digest.h"
#include "client/wire/pack.h"
#include "sync/push/large_file.h"

namespace nearbox::push {
namespace {

wire::Bytes noise(std::size_t size, unsigned seed) {
  std::mt19937 rng(seed);
  wire::Bytes out(size);
  for (auto& byte : out) byte = static_cast<std::byte>(rng());
  return out;
}

std::vector<wire::Chunk> chunks_of(wire::ByteView bytes, std::size_t piece) {
  wire::Chunker chunker;
  std::vector<wire::Chunk> out;
  for (std::size_t at = 0; at < bytes.size(); at += piece) {
    chunker.add(bytes.subspan(at, std::min(piece, bytes.size() - at)), out);
  }
  chunker.finish(out);
  return out;
}

TEST(Chunker, PiecesMakeNoDifferenceAndAllIsCovered) {
  const auto data = noise(3'000'000, 1);
  const auto whole = chunks_of(data, data.size());
  EXPECT_EQ(chunks_of(data, 1), whole);
  EXPECT_EQ(chunks_of(data, 4096), whole);
  EXPECT_EQ(chunks_of(data, 100'001), whole);
  std::uint64_t at = 0;
  for (const auto& chunk : whole) {
    EXPECT_EQ(chunk.offset, at);
    EXPECT_LE(chunk.length, wire::kMaxChunk);
    at += chunk.length;
  }
  EXPECT_EQ(at, data.size());
  const auto average = data.size() / whole.size();
  EXPECT_GT(average, wire::kAvgChunk / 2);
  EXPECT_LT(average, wire::kAvgChunk * 2);
}

TEST(Chunker, UniformBytesAreCutAtTheLimit) {
  const wire::Bytes zeros(1'000'000);
  for (const auto& chunk : chunks_of(zeros, 65'536)) EXPECT_LE(chunk.length, wire::kMaxChunk);
}

TEST(Chunker, AnInsertionMovesOnlyItsNeighbours) {
  auto data = noise(4'000'000, 2);
  const auto before = chunks_of(data, data.size());
  const auto more = noise(5'000, 3);
  data.insert(data.begin() + 1'234'567, more.begin(), more.end());
  RemoteChunks remote;
  wire::Bytes stream;
  wire::Writer writer(stream);
  for (const auto& chunk : before) fields(writer, wire::PushChunk{chunk.length, chunk.hash});
  for (std::size_t at = 0; at < stream.size(); at += 7) {
    remote.add(wire::ByteView(stream).subspan(at, std::min<std::size_t>(7, stream.size() - at)));
  }
  Segments segments;
  std::uint64_t sent = 0;
  for (const auto& chunk : chunks_of(data, 1'000'000)) {
    const auto* const from = remote.find(chunk);
    segments.add(chunk, from);
    if (from == nullptr) sent += chunk.length;
  }
  EXPECT_LT(sent, 5'000 + 3 * wire::kMaxChunk);
  EXPECT_LE(segments.size(), 5U);  // neighbours travel together
}

TEST(RemoteChunks, NonsenseIsLeftOut) {
  RemoteChunks remote;
  wire::Bytes stream;
  wire::Writer writer(stream);
  fields(writer, wire::PushChunk{0, 1});
  fields(writer, wire::PushChunk{wire::kMaxChunk + 1, 2});
  remote.add(stream);
  EXPECT_TRUE(remote.empty());
}

TEST(Pack, ComesBackAndIsBounded) {
  const auto data = noise(100'000, 4);
  const auto packed = wire::pack(data, 3);
  const auto back = wire::unpack(packed, data.size());
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, data);
  EXPECT_FALSE(wire::unpack(packed, data.size() - 1));
  EXPECT_FALSE(wire::unpack(packed, data.size() + 1));
  auto longer = packed;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(wire::unpack(longer, data.size()));
  EXPECT_FALSE(wire::unpack(wire::ByteView(packed).first(packed.size() / 2), data.size()));
  EXPECT_FALSE(wire::unpack({}, 0));
}

}  // namespace
}  // namespace nearbox::push
