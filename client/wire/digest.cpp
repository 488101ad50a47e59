// SPDX-License-Identifier: Apache-2.0
#include "client/wire/digest.h"

#include <cstring>
#include <new>

#include <xxhash.h>

namespace nearbox::wire {
namespace {

Digest canonical(XXH128_hash_t hash) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, hash);
  Digest digest;
  static_assert(sizeof bytes.digest == sizeof digest);
  std::memcpy(digest.data(), bytes.digest, digest.size());
  return digest;
}

}  // namespace

void Hasher::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

Hasher::Hasher() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  reset();
}
void Hasher::add(ByteView bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }
Digest Hasher::digest() const { return canonical(XXH3_128bits_digest(state_.get())); }
void Hasher::reset() { XXH3_128bits_reset(state_.get()); }

Digest digest_of(ByteView bytes) { return canonical(XXH3_128bits(bytes.data(), bytes.size())); }
std::uint64_t hash64(ByteView bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

}  // namespace nearbox::wire
