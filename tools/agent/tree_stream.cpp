// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/tree_stream.h"

#include <memory>

#include <zstd.h>

namespace nearbox::agent {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kFlushBytes = 256 * 1024;
constexpr std::chrono::milliseconds kFlushAfter{100};
constexpr int kLevel = 1;

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};

// The compressor and what of its output was not sent yet.
class Stream {
 public:
  explicit Stream(channel::Responder& responder) : responder_(responder), context_(ZSTD_createCCtx()) {
    if (context_) ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_compressionLevel, kLevel);
  }
  bool ok() const { return context_ != nullptr; }

  // False: the call is over.
  bool put(wire::ByteView bytes, ZSTD_EndDirective how) {
    ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
    while (true) {
      ZSTD_outBuffer out{buffer_.data(), buffer_.size(), used_};
      const std::size_t left = ZSTD_compressStream2(context_.get(), &out, &in, how);
      if (ZSTD_isError(left) != 0) return false;
      used_ = out.pos;
      const bool done = in.pos == in.size && (how == ZSTD_e_continue || left == 0);
      if ((used_ == buffer_.size() || (done && how != ZSTD_e_continue)) && !send()) return false;
      if (done) return true;
    }
  }

 private:
  bool send() {
    if (used_ == 0) return true;
    const bool alive = responder_.send(wire::ByteView(buffer_).first(used_));
    used_ = 0;
    return alive;
  }

  channel::Responder& responder_;
  std::unique_ptr<ZSTD_CCtx, FreeContext> context_;
  wire::Bytes buffer_ = wire::Bytes(ZSTD_CStreamOutSize());
  std::size_t used_ = 0;
};

}  // namespace

int stream_tree(TreeWalk& walk, channel::Responder& responder) {
  Stream stream(responder);
  if (!stream.ok()) return ENOMEM;
  wire::TreeEncoder encoder;
  wire::Bytes encoded;
  TreeWalk::Item item;
  bool first = true;
  std::size_t unflushed = 0;
  auto flush_at = Clock::now() + kFlushAfter;
  while (true) {
    if (responder.cancelled()) return ECANCELED;
    const auto next = walk.next(item, flush_at);
    bool flush = false;
    if (next == TreeWalk::Next::kEnd) break;
    if (next == TreeWalk::Next::kItem) {
      encoded.clear();
      encoder.add(item.block, encoded);
      if (!stream.put(encoded, ZSTD_e_continue)) return ECANCELED;
      unflushed += encoded.size();
      flush = first || item.urgent || unflushed >= kFlushBytes;
      first = false;
    }
    const auto now = Clock::now();
    if (!flush && now < flush_at) continue;
    if (unflushed > 0 && !stream.put({}, ZSTD_e_flush)) return ECANCELED;
    unflushed = 0;
    flush_at = now + kFlushAfter;
  }
  return stream.put({}, ZSTD_e_end) ? 0 : ECANCELED;
}

}  // namespace nearbox::agent
