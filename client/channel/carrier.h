// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <span>

#include "client/base/result.h"
#include "client/wire/codec.h"

namespace nearbox::channel {

using Deadline = std::chrono::steady_clock::time_point;

// A full-duplex byte stream to the other end: a pair of pipes, a socket, a WebSocket.
//
// Threads: one reader and one writer at a time, which may be two threads; shutdown() from any.
// Errors:  ETIMEDOUT when the deadline passes; ECONNABORTED after shutdown(); else the transport's.
//          After any error but ETIMEDOUT of read(), the carrier is of no more use.
class Carrier {
 public:
  virtual ~Carrier() = default;
  // Reads at least one byte; 0 means the other end closed.
  virtual base::Result<std::size_t> read(std::span<std::byte> into, Deadline deadline) = 0;
  // Writes all of `bytes`.
  virtual base::Result<void> write(wire::ByteView bytes, Deadline deadline) = 0;
  // Wakes reader and writer; both fail from now on. Does not close descriptors.
  virtual void shutdown() noexcept = 0;
};

}  // namespace nearbox::channel
