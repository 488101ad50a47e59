// SPDX-License-Identifier: Apache-2.0
#include "client/wire/pack.h"

#include <memory>
#include <new>

#include <zstd.h>

namespace nearbox::wire {
namespace {

// A context for each thread: making one costs more than packing a small body.
ZSTD_CCtx* compressor() {
  struct Free {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_CCtx, Free> context(ZSTD_createCCtx());
  return context.get();
}

ZSTD_DCtx* decompressor() {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_DCtx, Free> context(ZSTD_createDCtx());
  return context.get();
}

}  // namespace

Bytes pack(ByteView raw, int level) {
  Bytes out(ZSTD_compressBound(raw.size()));
  auto* const context = compressor();
  if (context == nullptr) throw std::bad_alloc();
  const auto size = ZSTD_compressCCtx(context, out.data(), out.size(), raw.data(), raw.size(), level);
  if (ZSTD_isError(size) != 0) throw std::bad_alloc();  // the only thing left that can fail
  out.resize(size);
  return out;
}

base::Result<Bytes> unpack(ByteView packed, std::size_t raw_size) {
  // One frame that ends where the bytes do, and says no other size than was announced.
  const auto frame = ZSTD_findFrameCompressedSize(packed.data(), packed.size());
  if (ZSTD_isError(frame) != 0 || frame != packed.size()) return base::errno_error(EPROTO, "packed body");
  if (ZSTD_getFrameContentSize(packed.data(), packed.size()) != raw_size) {
    return base::errno_error(EPROTO, "packed body");
  }
  Bytes out(raw_size);
  auto* const context = decompressor();
  if (context == nullptr) return base::errno_error(ENOMEM, "unpack");
  const auto size = ZSTD_decompressDCtx(context, out.data(), out.size(), packed.data(), packed.size());
  if (ZSTD_isError(size) != 0 || size != raw_size) return base::errno_error(EPROTO, "packed body");
  return out;
}

}  // namespace nearbox::wire
