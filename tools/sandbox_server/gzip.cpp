// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/gzip.h"

#include <array>
#include <limits>
#include <optional>
#include <zlib.h>

#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Whether the weight of a coding is zero.
bool refused(std::string_view parameters) {
  const auto q = trimmed(parameters);
  if (q.size() < 3 || (q[0] != 'q' && q[0] != 'Q') || q[1] != '=') return false;
  return q.substr(2).find_first_not_of("0.") == std::string_view::npos;
}

}  // namespace

struct Gzip::State {
  z_stream z{};
  bool ready = false;
};

Gzip::Gzip() : state_(std::make_unique<State>()) {
  constexpr int kGzipFormat = 15 + 16;
  constexpr int kMemory = 8;
  state_->ready =
      ::deflateInit2(&state_->z, Z_BEST_SPEED, Z_DEFLATED, kGzipFormat, kMemory, Z_DEFAULT_STRATEGY) == Z_OK;
}

Gzip::~Gzip() {
  if (state_->ready) (void)::deflateEnd(&state_->z);
}

std::string Gzip::run(std::string_view data, int flush) {
  std::string out;
  if (!state_->ready) return out;
  auto& z = state_->z;
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  z.avail_in = static_cast<uInt>(data.size());
  std::array<char, 64 * 1024> chunk{};
  do {
    z.next_out = reinterpret_cast<Bytef*>(chunk.data());
    z.avail_out = chunk.size();
    (void)::deflate(&z, flush);
    out.append(chunk.data(), chunk.size() - z.avail_out);
  } while (z.avail_out == 0);
  return out;
}

std::string Gzip::add(std::string_view data) {
  std::string out;
  constexpr std::size_t kMost = std::numeric_limits<uInt>::max();
  while (!data.empty()) {
    const auto piece = data.substr(0, kMost);
    out += run(piece, Z_NO_FLUSH);
    data.remove_prefix(piece.size());
  }
  return out;
}

std::string Gzip::finish() { return run({}, Z_FINISH); }

BodyEncoding encoding_of(std::string_view accept, bool identity_only) {
  std::optional<bool> gzip;
  std::optional<bool> identity;
  std::optional<bool> any;
  bool others = false;
  while (!accept.empty()) {
    const auto comma = accept.find(',');
    const auto item = trimmed(accept.substr(0, comma));
    const auto semicolon = item.find(';');
    const auto name = trimmed(item.substr(0, semicolon));
    const bool wanted = semicolon == std::string_view::npos || !refused(item.substr(semicolon + 1));
    if (iequals(name, "gzip")) {
      gzip = wanted;
    } else if (iequals(name, "identity")) {
      identity = wanted;
    } else if (name == "*") {
      any = wanted;
    } else if (!name.empty() && wanted) {
      others = true;
    }
    if (comma == std::string_view::npos) break;
    accept.remove_prefix(comma + 1);
  }
  const bool plain = identity.value_or(any.value_or(true));
  const bool zipped = gzip.value_or(any.value_or(false));
  if (identity_only) return plain ? BodyEncoding::kIdentity : BodyEncoding::kNone;
  if (plain && (others || identity || !gzip.value_or(false))) return BodyEncoding::kIdentity;
  return zipped ? BodyEncoding::kGzip : plain ? BodyEncoding::kIdentity : BodyEncoding::kNone;
}

}  // namespace nearbox::sandbox_server
