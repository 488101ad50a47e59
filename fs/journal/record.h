// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/wire/codec.h"
#include "client/wire/limits.h"

// What the journal keeps, and the limits of it. docs/journal.md explains both.
namespace nearbox::journal {

inline constexpr std::uint64_t kMaxBytes = 256ull << 20;    // of all files of one journal
inline constexpr std::uint64_t kSegmentBytes = 8ull << 20;  // of one file; one batch at most
inline constexpr std::uint64_t kIdleBytes = 256ull << 10;   // a file with nothing unacknowledged may keep
inline constexpr std::size_t kMaxRecords = 262'144;         // not acknowledged
inline constexpr std::size_t kMaxBatch = wire::kMaxOpsPerBatch;
inline constexpr std::size_t kMaxRecordBytes = 2ull << 20;  // payload of one record
inline constexpr std::size_t kMaxParts = 16;                // of one record
inline constexpr std::size_t kMaxLabel = wire::kMaxPath;    // of label and root path

// The number of a record: dense, growing for as long as the directory lives; never 0.
using Seq = std::uint64_t;

// Bytes beside the operation that replay needs: predicted attributes, what is expected before and left
// after. The journal does not look into them; `kind` is the caller's.
struct Part {
  std::uint16_t kind = 0;
  wire::ByteView bytes;
};

// A record to append. All views; they need to live until append() returned.
struct Record {
  std::uint64_t order = 0;  // the caller's own number
  std::string_view label;   // whom messages name: the mountpoint
  std::string_view root;    // absolute path in the sandbox that the operation's paths lie below
  wire::ByteView op;        // an encoded wire::Op
  std::span<const Part> parts;
};

struct StoredPart {
  std::uint16_t kind = 0;
  wire::Bytes bytes;
  bool operator==(const StoredPart&) const = default;
};

// A record as it was read back.
struct Stored {
  Seq seq = 0;
  std::uint64_t order = 0;
  std::string label;
  std::string root;
  wire::Bytes op;
  std::vector<StoredPart> parts;
  bool operator==(const Stored&) const = default;
};

}  // namespace nearbox::journal
