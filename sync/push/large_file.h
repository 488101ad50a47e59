// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "client/wire/chunker.h"
#include "client/wire/push.h"

namespace nearbox::push {

// The chunks of a file in the sandbox, as the agent told them.
//
// Bounds: wire::kMaxPushChunks; what comes after is left out, which costs bytes alone.
class RemoteChunks {
 public:
  void add(wire::ByteView records);  // any piece of the stream
  // A chunk of the same bytes; prefers the one at `offset`.
  const wire::Chunk* find(const wire::Chunk& like) const;
  bool at(const wire::Chunk& chunk) const;  // the very same, at the same place
  bool empty() const { return chunks_.empty(); }

 private:
  wire::Bytes partial_;
  std::uint64_t at_ = 0;
  std::vector<wire::Chunk> chunks_;
  std::unordered_map<std::uint64_t, std::uint32_t> by_hash_;
};

// What of a file travels: puts its chunks into segments, neighbours together.
class Segments {
 public:
  // `from`: where the sandbox has the bytes; nullptr: they travel.
  void add(const wire::Chunk& chunk, const wire::Chunk* from);
  std::vector<wire::PushSegment> take();
  std::size_t size() const { return segments_.size(); }

 private:
  std::vector<wire::PushSegment> segments_;
};

}  // namespace nearbox::push
