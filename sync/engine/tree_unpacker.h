// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "client/base/result.h"
#include "client/wire/tree.h"

struct ZSTD_DCtx_s;

namespace nearbox::sync {

// Turns the answer of one kTree call, in pieces of any size, into blocks.
//
// Bounds: a window of kMaxWindowLog bits and one block of memory; output of at most kMaxRatio times
//         the input and a start, so that few bytes cannot keep us busy for long.
// Errors: EPROTO; it is then dead until reset().
class TreeUnpacker {
 public:
  using Blocks = std::vector<wire::TreeBlock>;
  static constexpr int kMaxWindowLog = 23;
  static constexpr std::uint64_t kMaxRatio = 200;
  static constexpr std::uint64_t kFreeBytes = 64ull * 1024 * 1024;

  TreeUnpacker();
  // Calls sink with the blocks of each kPiece bytes of output.
  base::Result<void> feed(wire::ByteView bytes, const std::function<void(const Blocks&)>& sink);
  bool whole() const;  // the stream ended where it may end
  void reset();

 private:
  static constexpr std::size_t kPiece = 64 * 1024;
  struct Free {
    void operator()(ZSTD_DCtx_s* context) const;
  };
  std::unique_ptr<ZSTD_DCtx_s, Free> context_;
  wire::TreeDecoder decoder_;
  wire::Bytes piece_;
  std::uint64_t in_ = 0;
  std::uint64_t out_ = 0;
  bool ended_ = false;
};

}  // namespace nearbox::sync
