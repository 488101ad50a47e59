// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// Every limit of the protocol has its name here (docs/protocol.md, "Limits"). Sizes in bytes.
namespace nearbox::wire {

inline constexpr std::uint16_t kProtocolVersion = 2;

inline constexpr std::size_t kTokenBytes = 32;
inline constexpr std::size_t kSessionIdBytes = 16;
inline constexpr std::size_t kMaxFramePayload = 32 * 1024;   // larger messages travel in pieces
inline constexpr std::size_t kMaxMessage = 2 * 1024 * 1024;  // one call or answer, put together
inline constexpr std::size_t kMaxPartialMessages = 16;       // messages in pieces at one time, a direction
inline constexpr std::size_t kMaxHelloBytes = 8 * 1024;      // Hello, Welcome and Refused
inline constexpr std::size_t kMaxPath = 4096;                // PATH_MAX
inline constexpr std::size_t kMaxName = 255;                 // NAME_MAX
inline constexpr std::size_t kMaxText = 4096;                // error texts, host names …
inline constexpr std::size_t kMaxWriteBytes = 1024 * 1024;   // data of one write record
inline constexpr std::size_t kMaxXattrBytes = 64 * 1024;     // XATTR_SIZE_MAX
inline constexpr std::size_t kMaxKeys = 8;                   // order keys of one operation
inline constexpr std::size_t kMaxOpsPerBatch = 4096;
inline constexpr std::size_t kMaxReadBytes = 64ull * 1024 * 1024;  // one read call
inline constexpr std::size_t kMaxReadMany = 4096;                  // files of one read_many call
inline constexpr std::size_t kMaxStatMany = 4096;
inline constexpr std::size_t kMaxArgs = 4096;
inline constexpr std::size_t kMaxArgBytes = 128 * 1024;  // MAX_ARG_STRLEN
inline constexpr std::size_t kMaxEnv = 4096;
inline constexpr std::size_t kMaxMountsTold = 64;
inline constexpr std::size_t kMaxProcs = 1024;
inline constexpr std::size_t kMaxEventBytes = kMaxFramePayload;  // one event
inline constexpr std::uint64_t kMaxCredit = 256ull * 1024 * 1024;
inline constexpr std::uint32_t kMaxCallsInFlight = 16384;                  // per connection
inline constexpr std::uint64_t kMaxOpBytesInFlight = 64ull * 1024 * 1024;  // unacknowledged op data

}  // namespace nearbox::wire
