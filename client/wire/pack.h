// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/base/result.h"
#include "client/wire/codec.h"

// Bodies that travel as one zstd frame each.
namespace nearbox::wire {

// `level` as zstd has it. Never fails but for memory.
Bytes pack(ByteView raw, int level);

// Errors:  EPROTO: no frame, several, or not of exactly `raw_size` bytes.
base::Result<Bytes> unpack(ByteView packed, std::size_t raw_size);

}  // namespace nearbox::wire
