// SPDX-License-Identifier: Apache-2.0
#include "client/wire/chunker.h"

#include <algorithm>
#include <array>

#include "client/wire/digest.h"

namespace nearbox::wire {
namespace {

constexpr std::array<std::uint64_t, 256> make_table() {
  std::array<std::uint64_t, 256> table{};
  std::uint64_t state = 0;
  for (auto& value : table) {
    state += 0x9e3779b97f4a7c15ULL;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    value = z ^ (z >> 31);
  }
  return table;
}
constexpr auto kTable = make_table();

// The topmost bits: the gear hash shifts old bytes out there last. 15 bits are the average; two more before
// it and two less after keep most chunks near it.
constexpr std::uint64_t mask(int bits) { return ~0ULL << (64 - bits); }
constexpr std::uint64_t kMaskSmall = mask(17);
constexpr std::uint64_t kMaskLarge = mask(13);

}  // namespace

// How many of `bytes` belong to the chunk that is being made; `bytes.size()` + 1: all, and it is not whole.
std::size_t Chunker::scan(ByteView bytes) {
  std::size_t length = pending_.size();
  std::size_t i = 0;
  if (length < kMinChunk) {
    i = std::min<std::size_t>(kMinChunk - length, bytes.size());
    length += i;
  }
  const auto run = [&](std::size_t limit, std::uint64_t with) {
    while (i < bytes.size() && length < limit) {
      gear_ = (gear_ << 1) + kTable[std::to_integer<std::size_t>(bytes[i])];
      ++i, ++length;
      if ((gear_ & with) == 0) return true;
    }
    return false;
  };
  if (run(kAvgChunk, kMaskSmall) || run(kMaxChunk, kMaskLarge) || length >= kMaxChunk) return i;
  return bytes.size() + 1;
}

void Chunker::cut(std::vector<Chunk>& out) {
  out.push_back({at_, static_cast<std::uint32_t>(pending_.size()), hash64(pending_)});
  at_ += pending_.size();
  pending_.clear();
  gear_ = 0;
}

void Chunker::add(ByteView bytes, std::vector<Chunk>& out) {
  while (!bytes.empty()) {
    const auto take = scan(bytes);
    const auto part = bytes.first(std::min(take, bytes.size()));
    pending_.insert(pending_.end(), part.begin(), part.end());
    bytes = bytes.subspan(part.size());
    if (take == part.size()) cut(out);
  }
}

void Chunker::finish(std::vector<Chunk>& out) {
  if (!pending_.empty()) cut(out);
}

}  // namespace nearbox::wire
