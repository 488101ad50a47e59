// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "client/wire/codec.h"

namespace nearbox::wire {

// One piece of a file, cut where its content says so: what is inserted before it leaves it alone.
struct Chunk {
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
  std::uint64_t hash = 0;
  bool operator==(const Chunk&) const = default;
};

inline constexpr std::uint32_t kMinChunk = 8 * 1024;
inline constexpr std::uint32_t kAvgChunk = 32 * 1024;
inline constexpr std::uint32_t kMaxChunk = 128 * 1024;

// Cuts a file into chunks. Both ends of a push must cut alike: changing anything here is another protocol.
//
// Threads: one at a time.
// Source:  gear hash with two masks, one before and one after the average ("normalised chunking"): W. Xia and
//          others, FastCDC, USENIX ATC 2016, sections 3.2 to 3.4. The table is made by splitmix64 from seed
//          0.
class Chunker {
 public:
  // Chunks that are whole are added to `out`; the rest waits for more bytes.
  void add(ByteView bytes, std::vector<Chunk>& out);
  void finish(std::vector<Chunk>& out);

 private:
  std::size_t scan(ByteView bytes);
  void cut(std::vector<Chunk>& out);

  Bytes pending_;  // of the chunk that is not whole yet
  std::uint64_t gear_ = 0;
  std::uint64_t at_ = 0;  // where it begins
};

}  // namespace nearbox::wire
