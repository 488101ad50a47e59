// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <sys/uio.h>
#include <utility>
#include <vector>

#include "client/wire/codec.h"
#include "fs/journal/record.h"

// The bytes of the journal's files, without I/O. docs/journal.md draws them.
namespace nearbox::journal {

inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::size_t kFileHeaderBytes = 48;
inline constexpr std::size_t kRecordHeaderBytes = 32;
inline constexpr std::size_t kMaxPayload = 4ull << 20;  // a snapshot of kMaxRecords, each apart, fits
inline constexpr std::size_t kAckBytes = kRecordHeaderBytes + 4 + 12;  // one acknowledged alone
inline constexpr std::size_t kMaxRanges = kMaxRecords;

enum class FileKind : std::uint32_t { kSegment = 1, kAcks = 2 };

// The beginning of each file. `salt` is random and goes into every check of a record's head, so that bytes
// left over from another file never look like records of this one.
struct FileHeader {
  FileKind kind{};
  std::uint64_t salt = 0;
  std::uint64_t index = 0;  // as in the name
  Seq next_seq = 1;         // the number that would have been given next when the file was made
};

enum class HeaderState { kGood, kTorn, kOtherVersion, kDamaged };
struct DecodedHeader {
  HeaderState state = HeaderState::kTorn;
  FileHeader header;
  std::uint32_t version = 0;
};
wire::Bytes encode_header(const FileHeader& header);

// Whether checksums are compared; off is for the fault point journal.no_check alone.
enum class Check { kOn, kOff };
DecodedHeader decode_header(wire::ByteView file, Check check = Check::kOn);

enum class RecordType : std::uint8_t {
  kNew = 1,       // a record; these come with dense numbers
  kMoved = 2,     // the same, copied out of an older file under its own number
  kAcks = 3,      // ranges of acknowledged numbers
  kSnapshot = 4,  // all that is below a number is acknowledged but these ranges
};

// Numbers first, first + 1 … first + count - 1.
struct Range {
  Seq first = 0;
  std::uint32_t count = 0;
  Seq end() const { return first + count; }
  bool operator==(const Range&) const = default;
};

// Records on their way into a file: heads and small pieces in one buffer, large pieces where they are.
//
// Threads: one. What refer() was given lives until the batch is written.
class Batch {
 public:
  void raw(wire::ByteView bytes);  // before the first record: a file's header
  void begin(RecordType type, Seq seq);
  void copy(wire::ByteView bytes);
  void refer(wire::ByteView bytes);  // copies all the same what is small
  void end();

  // Sets what depends on the file and the time: the numbers of kNew records, and the checks.
  void seal(std::uint64_t salt, Seq first_new);
  std::vector<iovec> iov() const;
  std::size_t bytes() const { return bytes_; }
  std::size_t records() const { return heads_.size(); }
  std::size_t record_bytes(std::size_t i) const { return heads_[i].length + kRecordHeaderBytes; }

 private:
  struct Head {
    std::size_t at;  // in buffer_
    RecordType type;
    Seq seq;
    std::size_t length;
    std::uint64_t hash;
  };
  struct Piece {
    std::size_t at;  // in buffer_, where the piece comes in between
    wire::ByteView bytes;
  };
  wire::Bytes buffer_;
  std::vector<Head> heads_;
  std::vector<Piece> pieces_;
  std::size_t first_piece_ = 0;  // of the record that began last
  std::size_t bytes_ = 0;
};

void add_record(Batch& batch, RecordType type, Seq seq, const Record& record);
void add_acks(Batch& batch, std::span<const Range> ranges);
void add_snapshot(Batch& batch, Seq next, std::span<const Range> live);
std::size_t record_payload(const Record& record);  // bytes; above kMaxRecordBytes is refused

// Payloads. Nothing when the bytes are not exactly one valid of them.
std::optional<Stored> decode_record(wire::ByteView payload);
std::optional<std::vector<Range>> decode_acks(wire::ByteView payload);
struct Snapshot {
  Seq next = 1;
  std::vector<Range> live;
};
std::optional<Snapshot> decode_snapshot(wire::ByteView payload);

struct Found {
  RecordType type{};
  Seq seq = 0;
  std::size_t offset = 0;  // of the head, in the file
  wire::ByteView payload;
  std::size_t bytes() const { return payload.size() + kRecordHeaderBytes; }
};
enum class Tail { kClean, kTorn, kDamaged };
struct Scan {
  std::vector<Found> records;  // of complete batches, in a row from the header
  std::size_t end = 0;         // behind the last of them
  Tail tail = Tail::kClean;
  std::vector<Found> after;  // readable ones behind the damage
};
// Reads a file's records. Torn: the last record's head, or what it announces, goes past the end of the
// file, a batch is not complete there, or only zeros follow. Everything else that makes no sense is damage.
Scan scan(wire::ByteView file, const FileHeader& header, Check check = Check::kOn);
// The payload of the one record that `bytes` are, when they are the record `seq`.
std::optional<wire::ByteView> sound_payload(wire::ByteView bytes, std::uint64_t salt, Seq seq);

}  // namespace nearbox::journal
