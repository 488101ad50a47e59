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

// A push (push.h). Bodies are one zstd frame each.
inline constexpr std::size_t kDigestBytes = 16;
inline constexpr std::size_t kMaxPushBody =
    kMaxMessage - 64 * 1024;                                    // packed, with room for what is beside it
inline constexpr std::size_t kMaxPushRaw = 8 * 1024 * 1024;     // unpacked
inline constexpr std::size_t kMaxPushEntries = 4096;            // of one batch
inline constexpr std::size_t kMaxPushFile = 1024 * 1024;        // bytes of a file that travels in a batch
inline constexpr std::size_t kMaxPushChecks = 65536;            // of one list
inline constexpr std::size_t kMaxPushSegments = 16384;          // of one part
inline constexpr std::size_t kMaxPushStages = 64;               // files that a cut sync left half sent
inline constexpr std::size_t kMaxPushDirs = 1024;               // of one listing
inline constexpr std::size_t kMaxPushChunks = 4 * 1024 * 1024;  // of one file
inline constexpr std::uint64_t kMaxPushFileSize = 1ULL << 46;   // 64 TiB

}  // namespace nearbox::wire
