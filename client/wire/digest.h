// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "client/wire/codec.h"
#include "client/wire/limits.h"

struct XXH3_state_s;

namespace nearbox::wire {

// XXH3-128 of a file's bytes or a symlink's target, in canonical (big-endian) form; all zero: none.
using Digest = std::array<std::byte, kDigestBytes>;

// Digests bytes that come in pieces.
//
// Threads: one at a time.
class Hasher {
 public:
  Hasher();
  void add(ByteView bytes);
  Digest digest() const;
  void reset();

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

Digest digest_of(ByteView bytes);
std::uint64_t hash64(ByteView bytes);

}  // namespace nearbox::wire
