// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "client/wire/messages.h"

namespace nearbox::agent {

// The newest output of one process: bytes with one running offset, each with the stream it came from.
//
// Owns:    at most `capacity` bytes, allocated as they are needed, and max_records() stream changes.
// Threads: none of its own; the caller's lock guards it.
// Units:   offsets are bytes since the process began, stdout and stderr counted together.
class ProcRing {
 public:
  struct Piece {
    wire::ProcStream stream{};
    wire::Bytes data;
  };

  explicit ProcRing(std::size_t capacity) : capacity_(capacity) {}

  std::uint64_t begin() const { return begin_; }  // oldest byte kept
  std::uint64_t end() const { return end_; }      // one past the newest
  std::size_t size() const { return static_cast<std::size_t>(end_ - begin_); }
  std::size_t capacity() const { return capacity_; }
  std::size_t max_records() const { return kMinRecords + capacity_ / kBytesPerRecord; }
  // Bytes that append() takes without dropping older ones; 0 also when the records are used up.
  std::size_t room() const { return records_.size() >= max_records() ? 0 : capacity_ - size(); }

  // Adds bytes; the oldest ones go when there is no room.
  void append(wire::ProcStream stream, wire::ByteView bytes);
  // Forgets what lies before `offset`; offsets outside [begin, end] are brought into it.
  void trim(std::uint64_t offset);
  // The bytes at `offset`, at most `max` and all of one stream. Wants begin() <= offset < end().
  Piece piece(std::uint64_t offset, std::size_t max) const;

 private:
  struct Record {
    std::uint64_t start = 0;  // it reaches up to the next record's start
    wire::ProcStream stream{};
  };
  // Bytes that alternate between the streams cost a record each: without a bound of their own the
  // records would outweigh the bytes by far.
  static constexpr std::size_t kMinRecords = 1024;
  static constexpr std::size_t kBytesPerRecord = 64;
  static constexpr std::size_t kFirstAllocation = 16 * 1024;

  void grow(std::size_t needed);
  void store(std::uint64_t offset, wire::ByteView bytes);

  std::size_t capacity_;
  std::vector<std::byte> buffer_;  // the byte of offset o lies at o % size
  std::deque<Record> records_;
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = 0;
};

}  // namespace nearbox::agent
