// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <vector>

#include "fs/journal/format.h"
#include "tests/fuzz/fuzz_target.h"

// A file of the journal, and what stands in its records. The first byte says which: random bytes do not
// get past the checksums, so payloads are also tried by themselves, and files with the checks off.
namespace {

using namespace nearbox;
using journal::Check;
using journal::RecordType;

void check_range(const journal::Range& range) {
  NEARBOX_FUZZ_CHECK(range.count > 0 && range.end() > range.first);
}

void payload(wire::ByteView bytes) {
  if (const auto record = journal::decode_record(bytes)) {
    NEARBOX_FUZZ_CHECK(record->label.size() <= journal::kMaxLabel &&
                       record->root.size() <= journal::kMaxLabel);
    NEARBOX_FUZZ_CHECK(record->parts.size() <= journal::kMaxParts);
    // It says the same again, with a checksum that is found to be right.
    std::vector<journal::Part> parts;
    for (const auto& part : record->parts) parts.push_back({part.kind, part.bytes});
    journal::Batch batch;
    journal::add_record(batch, RecordType::kNew, 0,
                        {record->order, record->label, record->root, record->op, parts});
    batch.seal(17, 4);
    wire::Bytes file = journal::encode_header({journal::FileKind::kSegment, 17, 1, 4});
    for (const auto& piece : batch.iov()) {
      const auto* const at = static_cast<const std::byte*>(piece.iov_base);
      file.insert(file.end(), at, at + piece.iov_len);
    }
    const auto again = journal::scan(file, journal::decode_header(file).header);
    NEARBOX_FUZZ_CHECK(again.records.size() == 1 && again.tail == journal::Tail::kClean);
    NEARBOX_FUZZ_CHECK(again.records[0].seq == 4 && again.records[0].payload.size() == bytes.size());
    NEARBOX_FUZZ_CHECK(std::memcmp(again.records[0].payload.data(), bytes.data(), bytes.size()) == 0);
  }
  if (const auto acks = journal::decode_acks(bytes)) {
    for (const auto& range : *acks) check_range(range);
  }
  if (const auto snapshot = journal::decode_snapshot(bytes)) {
    for (const auto& range : snapshot->live) {
      check_range(range);
      NEARBOX_FUZZ_CHECK(range.end() <= snapshot->next);
    }
  }
}

void file(wire::ByteView bytes, Check check) {
  const auto header = journal::decode_header(bytes, check);
  if (header.state != journal::HeaderState::kGood) return;
  const auto scanned = journal::scan(bytes, header.header, check);
  std::size_t at = journal::kFileHeaderBytes;
  for (const auto& found : scanned.records) {
    NEARBOX_FUZZ_CHECK(found.offset == at);  // in a row
    at += found.bytes();
    payload(found.payload);
  }
  NEARBOX_FUZZ_CHECK(scanned.end == at && at <= bytes.size());
  NEARBOX_FUZZ_CHECK(scanned.tail != journal::Tail::kClean || at == bytes.size());
  for (const auto& found : scanned.after) {
    NEARBOX_FUZZ_CHECK(found.offset >= at && found.offset + found.bytes() <= bytes.size());
    at = found.offset + found.bytes();
    payload(found.payload);
  }
}

}  // namespace

NEARBOX_FUZZ(bytes) {
  if (bytes.empty()) return;
  const auto rest = bytes.subspan(1);
  switch (std::to_integer<int>(bytes[0]) % 3) {
    case 0:
      return file(rest, Check::kOn);
    case 1:
      return file(rest, Check::kOff);
    default:
      return payload(rest);
  }
}
