// SPDX-License-Identifier: Apache-2.0
#include "fs/journal/format.h"

#include <algorithm>
#include <cstring>
#include <limits>

#define XXH_STATIC_LINKING_ONLY  // the state of a streamed hash on the stack
#include <xxhash.h>

namespace nearbox::journal {
namespace {

constexpr std::array<char, 8> kMagic = {'n', 'b', 'j', 'o', 'u', 'r', 'n', '\n'};
constexpr std::uint32_t kRecordMagic = 0x434a424e;  // NBJC
constexpr std::size_t kCopyLimit = 32 * 1024;       // larger pieces stay where they are: keeps below IOV_MAX
constexpr std::size_t kMinRange = 12;

template <class T>
void store(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}
template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

// Places in a file's header: magic 0, version 8, kind 12, salt 16, index 24, next_seq 32, check 40.
constexpr std::size_t kHeaderChecked = 40;

// Places in a record's head: magic 0, length 4, seq 8, type 16, zero 17, batch left 18, check 20, hash 24.
std::uint32_t head_check(const std::byte* head, std::uint64_t salt) {
  std::array<std::byte, 28> bytes;
  std::memcpy(bytes.data(), head, 20);
  std::memcpy(bytes.data() + 20, head + 24, 8);
  return static_cast<std::uint32_t>(XXH3_64bits_withSeed(bytes.data(), bytes.size(), salt));
}

struct Head {
  std::uint32_t length;
  Seq seq;
  RecordType type;
  std::uint16_t left;
  std::uint64_t hash;
};

std::optional<Head> read_head(const std::byte* at, std::uint64_t salt, Check check) {
  if (load<std::uint32_t>(at) != kRecordMagic) return std::nullopt;
  if (check == Check::kOn && load<std::uint32_t>(at + 20) != head_check(at, salt)) return std::nullopt;
  Head head{load<std::uint32_t>(at + 4), load<std::uint64_t>(at + 8),
            static_cast<RecordType>(load<std::uint8_t>(at + 16)), load<std::uint16_t>(at + 18),
            load<std::uint64_t>(at + 24)};
  const auto type = static_cast<int>(head.type);
  if (head.length > kMaxPayload || type < 1 || type > 4) return std::nullopt;
  return head;
}

bool all_zero(wire::ByteView bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

bool valid_ranges(const std::vector<Range>& ranges) {
  return std::all_of(ranges.begin(), ranges.end(), [](const Range& range) {
    return range.first != 0 && range.count != 0 &&
           range.first <= std::numeric_limits<Seq>::max() - range.count;
  });
}

std::optional<std::vector<Range>> read_ranges(wire::Reader& reader) {
  std::uint32_t count = 0;
  reader.num(count);
  if (!reader.ok() || count > kMaxRanges || reader.rest().size() != count * kMinRange) return std::nullopt;
  std::vector<Range> ranges(count);
  for (auto& range : ranges) reader.num(range.first), reader.num(range.count);
  if (!reader.done() || !valid_ranges(ranges)) return std::nullopt;
  return ranges;
}

void copy_ranges(Batch& batch, std::span<const Range> ranges) {
  wire::Bytes bytes;
  bytes.reserve(4 + ranges.size() * kMinRange);
  wire::Writer writer(bytes);
  writer.num(static_cast<std::uint32_t>(ranges.size()));
  for (const auto& range : ranges) writer.num(range.first), writer.num(range.count);
  batch.copy(bytes);
}

}  // namespace

wire::Bytes encode_header(const FileHeader& header) {
  wire::Bytes out(kFileHeaderBytes);
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  store(out.data() + 8, kFormatVersion);
  store(out.data() + 12, header.kind);
  store(out.data() + 16, header.salt);
  store(out.data() + 24, header.index);
  store(out.data() + 32, header.next_seq);
  store(out.data() + kHeaderChecked, static_cast<std::uint64_t>(XXH3_64bits(out.data(), kHeaderChecked)));
  return out;
}

DecodedHeader decode_header(wire::ByteView file, Check check) {
  DecodedHeader out;
  if (file.size() < kFileHeaderBytes || all_zero(file)) return out;
  out.state = HeaderState::kDamaged;
  const std::byte* const at = file.data();
  if (std::memcmp(at, kMagic.data(), kMagic.size()) != 0) return out;
  out.version = load<std::uint32_t>(at + 8);
  const bool sound = load<std::uint64_t>(at + kHeaderChecked) == XXH3_64bits(at, kHeaderChecked);
  // The first 48 bytes keep their meaning in every version: a flipped bit is no other version.
  if (out.version != kFormatVersion) {
    if (sound) out.state = HeaderState::kOtherVersion;
    return out;
  }
  if (check == Check::kOn && !sound) return out;
  out.header = {load<FileKind>(at + 12), load<std::uint64_t>(at + 16), load<std::uint64_t>(at + 24),
                load<std::uint64_t>(at + 32)};
  const bool kind = out.header.kind == FileKind::kSegment || out.header.kind == FileKind::kAcks;
  if (kind && out.header.next_seq != 0) out.state = HeaderState::kGood;
  return out;
}

void Batch::raw(wire::ByteView bytes) {
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  bytes_ += bytes.size();
}

void Batch::begin(RecordType type, Seq seq) {
  heads_.push_back({buffer_.size(), type, seq, 0, 0});
  buffer_.resize(buffer_.size() + kRecordHeaderBytes);
  first_piece_ = pieces_.size();
  bytes_ += kRecordHeaderBytes;
}

void Batch::copy(wire::ByteView bytes) {
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  heads_.back().length += bytes.size();
  bytes_ += bytes.size();
}

void Batch::refer(wire::ByteView bytes) {
  if (bytes.size() <= kCopyLimit) return copy(bytes);
  pieces_.push_back({buffer_.size(), bytes});
  heads_.back().length += bytes.size();
  bytes_ += bytes.size();
}

void Batch::end() {
  Head& head = heads_.back();
  std::size_t at = head.at + kRecordHeaderBytes;
  if (first_piece_ == pieces_.size()) {
    head.hash = XXH3_64bits(buffer_.data() + at, buffer_.size() - at);
    return;
  }
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (std::size_t i = first_piece_; i < pieces_.size(); ++i) {
    XXH3_64bits_update(&state, buffer_.data() + at, pieces_[i].at - at);
    XXH3_64bits_update(&state, pieces_[i].bytes.data(), pieces_[i].bytes.size());
    at = pieces_[i].at;
  }
  XXH3_64bits_update(&state, buffer_.data() + at, buffer_.size() - at);
  head.hash = XXH3_64bits_digest(&state);
}

void Batch::seal(std::uint64_t salt, Seq first_new) {
  auto left = heads_.size();
  for (auto& head : heads_) {
    if (head.type == RecordType::kNew) head.seq = first_new++;
    std::byte* const at = buffer_.data() + head.at;
    store(at, kRecordMagic);
    store(at + 4, static_cast<std::uint32_t>(head.length));
    store(at + 8, head.seq);
    store(at + 16, head.type);
    store(at + 17, std::uint8_t{0});
    store(at + 18, static_cast<std::uint16_t>(--left));
    store(at + 24, head.hash);
    store(at + 20, head_check(at, salt));
  }
}

std::vector<iovec> Batch::iov() const {
  const auto vec = [](const std::byte* at, std::size_t size) {
    return iovec{const_cast<std::byte*>(at), size};
  };
  std::vector<iovec> out;
  out.reserve(2 * pieces_.size() + 1);
  std::size_t at = 0;
  for (const auto& piece : pieces_) {
    if (piece.at > at) out.push_back(vec(buffer_.data() + at, piece.at - at));
    out.push_back(vec(piece.bytes.data(), piece.bytes.size()));
    at = piece.at;
  }
  if (buffer_.size() > at) out.push_back(vec(buffer_.data() + at, buffer_.size() - at));
  return out;
}

// order, label, root, length of op, parts (count; kind and length of each), then op and the parts.
std::size_t record_payload(const Record& record) {
  std::size_t size = 8 + 4 + record.label.size() + 4 + record.root.size() + 4 + 4 + record.op.size();
  for (const auto& part : record.parts) size += 6 + part.bytes.size();
  return size;
}

void add_record(Batch& batch, RecordType type, Seq seq, const Record& record) {
  wire::Bytes head;
  head.reserve(24 + record.label.size() + record.root.size() + 6 * record.parts.size());
  const auto text = [&head](wire::Writer& writer, std::string_view value) {
    writer.num(static_cast<std::uint32_t>(value.size()));
    const auto bytes = wire::as_view(value);
    head.insert(head.end(), bytes.begin(), bytes.end());
  };
  wire::Writer writer(head);
  writer.num(record.order);
  text(writer, record.label);
  text(writer, record.root);
  writer.num(static_cast<std::uint32_t>(record.op.size()));
  writer.num(static_cast<std::uint32_t>(record.parts.size()));
  for (const auto& part : record.parts) {
    writer.num(part.kind);
    writer.num(static_cast<std::uint32_t>(part.bytes.size()));
  }
  batch.begin(type, seq);
  batch.copy(head);
  batch.refer(record.op);
  for (const auto& part : record.parts) batch.refer(part.bytes);
  batch.end();
}

void add_acks(Batch& batch, std::span<const Range> ranges) {
  batch.begin(RecordType::kAcks, 0);
  copy_ranges(batch, ranges);
  batch.end();
}

void add_snapshot(Batch& batch, Seq next, std::span<const Range> live) {
  batch.begin(RecordType::kSnapshot, 0);
  batch.copy(std::as_bytes(std::span(&next, 1)));
  copy_ranges(batch, live);
  batch.end();
}

std::optional<Stored> decode_record(wire::ByteView payload) {
  Stored out;
  wire::Reader reader(payload);
  std::uint32_t op_size = 0;
  std::uint32_t count = 0;
  reader.num(out.order);
  reader.bytes(out.label, kMaxLabel);
  reader.bytes(out.root, kMaxLabel);
  reader.num(op_size);
  reader.num(count);
  if (!reader.ok() || count > kMaxParts) return std::nullopt;
  std::array<std::uint32_t, kMaxParts> sizes{};
  out.parts.resize(count);
  std::uint64_t total = op_size;
  for (std::uint32_t i = 0; i < count; ++i) {
    reader.num(out.parts[i].kind), reader.num(sizes[i]);
    total += sizes[i];
  }
  if (!reader.ok()) return std::nullopt;
  auto rest = reader.rest();
  if (rest.size() != total || payload.size() > kMaxRecordBytes) return std::nullopt;
  const auto take = [&rest](std::size_t size) {
    const auto bytes = rest.first(size);
    rest = rest.subspan(size);
    return wire::Bytes(bytes.begin(), bytes.end());
  };
  out.op = take(op_size);
  for (std::uint32_t i = 0; i < count; ++i) out.parts[i].bytes = take(sizes[i]);
  return out;
}

std::optional<std::vector<Range>> decode_acks(wire::ByteView payload) {
  wire::Reader reader(payload);
  return read_ranges(reader);
}

std::optional<Snapshot> decode_snapshot(wire::ByteView payload) {
  wire::Reader reader(payload);
  Snapshot out;
  reader.num(out.next);
  auto live = read_ranges(reader);
  if (!live || out.next == 0) return std::nullopt;
  for (const auto& range : *live) {
    if (range.end() > out.next) return std::nullopt;
  }
  out.live = std::move(*live);
  return out;
}

namespace {

// One record at `at`, or why not: kTorn or kDamaged.
struct One {
  Tail tail = Tail::kClean;
  Found found;
  std::uint16_t left = 0;
};

One read_one(wire::ByteView file, std::size_t at, std::uint64_t salt, Check check) {
  One out;
  const auto rest = file.subspan(at);
  out.tail = Tail::kTorn;
  if (rest.size() < kRecordHeaderBytes) return out;
  const auto head = read_head(rest.data(), salt, check);
  if (!head) {
    if (!all_zero(rest)) out.tail = Tail::kDamaged;
    return out;
  }
  if (head->length > rest.size() - kRecordHeaderBytes) return out;
  const auto payload = rest.subspan(kRecordHeaderBytes, head->length);
  if (check == Check::kOn && XXH3_64bits(payload.data(), payload.size()) != head->hash) {
    out.tail = Tail::kDamaged;
    return out;
  }
  out.tail = Tail::kClean;
  out.found = {head->type, head->seq, at, payload};
  out.left = head->left;
  return out;
}

// Every record that can be read at or behind `at`, wherever it begins.
void resync(wire::ByteView file, std::size_t at, std::uint64_t salt, Check check, std::vector<Found>& out) {
  const auto magic = std::as_bytes(std::span(&kRecordMagic, 1));
  while (at < file.size()) {
    const auto it =
        std::search(file.begin() + static_cast<std::ptrdiff_t>(at), file.end(), magic.begin(), magic.end());
    if (it == file.end()) return;
    at = static_cast<std::size_t>(it - file.begin());
    const auto one = read_one(file, at, salt, check);
    if (one.tail == Tail::kClean) out.push_back(one.found);
    at += one.tail == Tail::kClean ? one.found.bytes() : 1;
  }
}

}  // namespace

std::optional<wire::ByteView> sound_payload(wire::ByteView bytes, std::uint64_t salt, Seq seq) {
  const auto one = read_one(bytes, 0, salt, Check::kOn);
  if (one.tail != Tail::kClean || one.found.seq != seq || one.found.bytes() != bytes.size())
    return std::nullopt;
  return one.found.payload;
}

Scan scan(wire::ByteView file, const FileHeader& header, Check check) {
  Scan out;
  std::size_t at = std::min(kFileHeaderBytes, file.size());
  out.end = at;
  std::vector<Found> batch;
  std::uint16_t left = 0;
  while (at < file.size()) {
    auto one = read_one(file, at, header.salt, check);
    const bool fits = batch.empty() || one.left + 1 == left;
    if (one.tail == Tail::kClean && !fits) one.tail = Tail::kDamaged;
    if (one.tail != Tail::kClean) {
      out.tail = one.tail;
      if (one.tail == Tail::kDamaged) resync(file, out.end, header.salt, check, out.after);
      return out;
    }
    batch.push_back(one.found);
    left = one.left;
    at += one.found.bytes();
    if (left != 0) continue;
    out.records.insert(out.records.end(), batch.begin(), batch.end());
    batch.clear();
    out.end = at;
  }
  if (!batch.empty()) out.tail = Tail::kTorn;
  return out;
}

}  // namespace nearbox::journal
