// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/gunzip.h"

#include <array>
#include <limits>
#include <zlib.h>

namespace nearbox::sandbox_server {

struct Gunzip::State {
  z_stream z{};
  std::array<char, 64 * 1024> input{};
  bool ready = false;
  bool ended = false;
};

Gunzip::Gunzip(MultipartReader::Source source)
    : source_(std::move(source)), state_(std::make_unique<State>()) {
  constexpr int kGzipOnly = 15 + 16;
  state_->ready = ::inflateInit2(&state_->z, kGzipOnly) == Z_OK;
}

Gunzip::~Gunzip() {
  if (state_->ready) (void)::inflateEnd(&state_->z);
}

base::Result<std::size_t> Gunzip::read(char* data, std::size_t size) {
  auto& z = state_->z;
  if (!state_->ready) return base::errno_error(ENOMEM, "gzip");
  if (size > std::numeric_limits<uInt>::max()) size = std::numeric_limits<uInt>::max();
  z.next_out = reinterpret_cast<Bytef*>(data);
  z.avail_out = static_cast<uInt>(size);
  while (!state_->ended && z.avail_out == size) {
    if (z.avail_in == 0) {
      const auto got = source_(state_->input.data(), state_->input.size());
      if (!got) return got.error();
      if (*got == 0) return base::errno_error(EBADMSG, "gzip: unexpected EOF");
      z.next_in = reinterpret_cast<Bytef*>(state_->input.data());
      z.avail_in = static_cast<uInt>(*got);
    }
    const int result = ::inflate(&z, Z_NO_FLUSH);
    state_->ended = result == Z_STREAM_END;
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
      return base::errno_error(EBADMSG, "gzip: damaged data");
    }
  }
  return size - z.avail_out;
}

}  // namespace nearbox::sandbox_server
