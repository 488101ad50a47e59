// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_ring.h"

#include <algorithm>
#include <cstring>

namespace nearbox::agent {

void ProcRing::append(wire::ProcStream stream, wire::ByteView bytes) {
  if (bytes.empty() || capacity_ == 0) return;
  const std::uint64_t new_end = end_ + bytes.size();
  if (new_end - begin_ > capacity_) {
    trim(new_end - capacity_);
    if (bytes.size() > capacity_) {  // only its tail stays
      begin_ = end_ = new_end - capacity_;
      bytes = bytes.last(capacity_);
    }
  }
  if (records_.empty() || records_.back().stream != stream) {
    if (records_.size() >= max_records()) trim(records_[1].start);
    records_.push_back({end_, stream});
  }
  grow(size() + bytes.size());
  store(end_, bytes);
  end_ = new_end;
}

void ProcRing::trim(std::uint64_t offset) {
  begin_ = std::clamp(offset, begin_, end_);
  while (records_.size() > 1 && records_[1].start <= begin_) records_.pop_front();
  if (begin_ == end_) {
    records_.clear();
  } else if (records_.front().start < begin_) {
    records_.front().start = begin_;
  }
}

ProcRing::Piece ProcRing::piece(std::uint64_t offset, std::size_t max) const {
  const auto next = std::upper_bound(records_.begin(), records_.end(), offset,
                                     [](std::uint64_t o, const Record& r) { return o < r.start; });
  const std::uint64_t stop = next == records_.end() ? end_ : next->start;
  const auto length = std::min<std::size_t>(max, static_cast<std::size_t>(stop - offset));
  Piece piece{std::prev(next)->stream, wire::Bytes(length)};
  const std::size_t at = static_cast<std::size_t>(offset % buffer_.size());
  const std::size_t first = std::min(length, buffer_.size() - at);
  std::memcpy(piece.data.data(), buffer_.data() + at, first);
  if (first < length) std::memcpy(piece.data.data() + first, buffer_.data(), length - first);
  return piece;
}

void ProcRing::grow(std::size_t needed) {
  if (needed <= buffer_.size()) return;
  std::size_t target = std::max(kFirstAllocation, buffer_.size());
  while (target < needed) target *= 2;
  std::vector<std::byte> old(std::min(target, capacity_));
  old.swap(buffer_);
  if (size() == 0) return;
  const std::size_t at = static_cast<std::size_t>(begin_ % old.size());
  const std::size_t first = std::min(size(), old.size() - at);
  store(begin_, wire::ByteView(old).subspan(at, first));
  store(begin_ + first, wire::ByteView(old).first(size() - first));
}

void ProcRing::store(std::uint64_t offset, wire::ByteView bytes) {
  if (bytes.empty()) return;
  const std::size_t at = static_cast<std::size_t>(offset % buffer_.size());
  const std::size_t first = std::min(bytes.size(), buffer_.size() - at);
  std::memcpy(buffer_.data() + at, bytes.data(), first);
  if (first < bytes.size()) std::memcpy(buffer_.data(), bytes.data() + first, bytes.size() - first);
}

}  // namespace nearbox::agent
