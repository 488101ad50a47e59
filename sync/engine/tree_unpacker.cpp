// SPDX-License-Identifier: Apache-2.0
#include "sync/engine/tree_unpacker.h"

#include <cerrno>
#include <utility>

#include <zstd.h>

namespace nearbox::sync {
namespace {

base::Error broken(const char* what) { return base::errno_error(EPROTO, what); }

}  // namespace

void TreeUnpacker::Free::operator()(ZSTD_DCtx_s* context) const { ZSTD_freeDCtx(context); }

TreeUnpacker::TreeUnpacker() : context_(ZSTD_createDCtx()) { reset(); }

void TreeUnpacker::reset() {
  ZSTD_DCtx_reset(context_.get(), ZSTD_reset_session_and_parameters);
  ZSTD_DCtx_setParameter(context_.get(), ZSTD_d_windowLogMax, kMaxWindowLog);
  decoder_ = {};
  in_ = out_ = 0;
  ended_ = false;
}

bool TreeUnpacker::whole() const { return ended_ && decoder_.at_block_boundary(); }

base::Result<void> TreeUnpacker::feed(wire::ByteView bytes, const std::function<void(const Blocks&)>& sink) {
  if (bytes.empty()) return {};
  if (ended_) return broken("tree stream: bytes after its end");
  piece_.resize(kPiece);
  in_ += bytes.size();
  ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
  while (true) {
    ZSTD_outBuffer out{piece_.data(), piece_.size(), 0};
    const auto left = ZSTD_decompressStream(context_.get(), &out, &in);
    if (ZSTD_isError(left) != 0) return broken("tree stream: zstd");
    out_ += out.pos;
    if (out_ > kFreeBytes + kMaxRatio * in_) return broken("tree stream: too much for its size");
    Blocks blocks;
    auto fed = decoder_.feed(wire::ByteView(piece_).first(out.pos),
                             [&](wire::TreeBlock&& block) { blocks.push_back(std::move(block)); });
    if (!blocks.empty()) sink(blocks);
    if (!fed) return std::move(fed).error();
    ended_ = left == 0;
    if (ended_ && in.pos < in.size) return broken("tree stream: bytes after its end");
    if (ended_ || (in.pos == in.size && out.pos < out.size)) return {};
  }
}

}  // namespace nearbox::sync
