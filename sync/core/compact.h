// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

// What the mirror is stored in: everything by 32-bit index, in pieces of a fixed size, so that
// growing copies nothing and leaves little slack. Internal to sync/core.
namespace nearbox::sync::compact {

// Records by index from 1 on (0 is none), reused after they were freed.
//
// Units: T is default-constructed on take() and give(); give() keeps the record's memory.
template <class T, std::size_t kPerPiece>
class Pool {
 public:
  T& operator[](std::uint32_t i) { return pieces_[i / kPerPiece][i % kPerPiece]; }
  const T& operator[](std::uint32_t i) const { return pieces_[i / kPerPiece][i % kPerPiece]; }
  bool holds(std::uint32_t i) const { return i != 0 && i < end_; }

  std::uint32_t take() {
    ++used_;
    if (!free_.empty()) {
      const auto i = free_.back();
      free_.pop_back();
      return i;
    }
    if (end_ / kPerPiece == pieces_.size()) pieces_.push_back(std::make_unique<T[]>(kPerPiece));
    return end_++;
  }
  void give(std::uint32_t i) {
    (*this)[i] = T{};
    free_.push_back(i);
    --used_;
  }
  std::size_t used() const { return used_; }
  template <class Fn>
  void each(Fn&& fn) const {  // free ones too, in their first state
    for (std::uint32_t i = 1; i < end_; ++i) fn((*this)[i]);
  }
  template <class Fn>
  void each_mutable(Fn&& fn) {
    for (std::uint32_t i = 1; i < end_; ++i) fn((*this)[i]);
  }
  std::size_t memory_bytes() const {
    return pieces_.size() * kPerPiece * sizeof(T) + pieces_.capacity() * sizeof(void*) +
           free_.capacity() * sizeof(std::uint32_t);
  }

 private:
  std::vector<std::unique_ptr<T[]>> pieces_;
  std::vector<std::uint32_t> free_;
  std::uint32_t end_ = 1;
  std::size_t used_ = 0;
};

// Short byte strings by a 32-bit reference (0 is none), in size classes of kUnit bytes. A freed
// string's room is used again by one of the same class.
class Arena {
 public:
  static constexpr std::size_t kMaxBytes = 4096 + 2;

  char* at(std::uint32_t ref) { return pieces_[ref / kUnits].get() + ref % kUnits * kUnit; }
  const char* at(std::uint32_t ref) const { return pieces_[ref / kUnits].get() + ref % kUnits * kUnit; }

  std::uint32_t take(std::size_t bytes) {
    const auto units = class_of(bytes);
    if (free_[units] != 0) {
      const auto ref = free_[units];
      std::memcpy(&free_[units], at(ref), sizeof ref);
      return ref;
    }
    if (end_ % kUnits == 0 || end_ % kUnits + units > kUnits) next_piece();
    const auto ref = end_;
    end_ += units;
    return ref;
  }
  void give(std::uint32_t ref, std::size_t bytes) { put_free(ref, class_of(bytes)); }
  std::size_t memory_bytes() const {
    return pieces_.size() * kUnits * kUnit + pieces_.capacity() * sizeof(void*) + sizeof *this;
  }

 private:
  static constexpr std::uint32_t kUnit = 4;
  static constexpr std::uint32_t kUnits = 16 * 1024;  // of a piece: 64 KiB
  static constexpr std::uint32_t kClasses = (kMaxBytes + kUnit - 1) / kUnit + 1;

  static std::uint32_t class_of(std::size_t bytes) {
    return static_cast<std::uint32_t>((std::max<std::size_t>(bytes, 1) + kUnit - 1) / kUnit);
  }
  void put_free(std::uint32_t ref, std::uint32_t units) {
    std::memcpy(at(ref), &free_[units], sizeof ref);
    free_[units] = ref;
  }
  void next_piece() {
    auto left = end_ % kUnits == 0 ? 0 : kUnits - end_ % kUnits;
    while (left > 0) {  // the rest of the piece becomes a free string
      const auto units = std::min(left, kClasses - 1);
      put_free(end_, units);
      end_ += units, left -= units;
    }
    pieces_.push_back(std::make_unique<char[]>(std::size_t{kUnits} * kUnit));
    end_ = static_cast<std::uint32_t>(pieces_.size() - 1) * kUnits;
    if (end_ == 0) end_ = 1;  // reference 0 is none
  }

  std::vector<std::unique_ptr<char[]>> pieces_;
  std::array<std::uint32_t, kClasses> free_{};
  std::uint32_t end_ = 0;
};

// A hash index that grows one bucket at a time (linear hashing), so that neither its memory nor the
// time of one insertion jumps as those of a doubling table do. Chains run through the records.
//
// Store has `std::uint32_t& next(i)` and `std::uint32_t hash(i)`.
template <class Store>
class Index {
 public:
  explicit Index(Store& store) : store_(store) { grow(); }

  template <class Same>
  std::uint32_t find(std::uint32_t hash, Same&& same) const {
    auto i = bucket(bucket_of(hash));
    while (i != 0 && !same(i)) i = store_.next(i);
    return i;
  }
  void insert(std::uint32_t i) {
    auto& head = bucket(bucket_of(store_.hash(i)));
    store_.next(i) = head;
    head = i;
    if (++count_ > buckets_) split();
  }
  void erase(std::uint32_t i) {
    auto* at = &bucket(bucket_of(store_.hash(i)));
    while (*at != i) at = &store_.next(*at);
    *at = store_.next(i);
    --count_;
  }
  std::size_t memory_bytes() const {
    return pieces_.size() * kPerPiece * sizeof(std::uint32_t) + pieces_.capacity() * sizeof(void*);
  }

 private:
  static constexpr std::uint32_t kPerPiece = 4096;

  std::uint32_t& bucket(std::uint32_t b) { return pieces_[b / kPerPiece][b % kPerPiece]; }
  const std::uint32_t& bucket(std::uint32_t b) const { return pieces_[b / kPerPiece][b % kPerPiece]; }
  std::uint32_t bucket_of(std::uint32_t hash) const {
    const auto b = hash & (2 * level_ - 1);
    return b < buckets_ ? b : hash & (level_ - 1);
  }
  void grow() {
    if (buckets_ / kPerPiece == pieces_.size()) {
      pieces_.push_back(std::make_unique<std::uint32_t[]>(kPerPiece));
    }
    ++buckets_;
  }
  // Divides the oldest undivided bucket of this level between itself and one new bucket.
  void split() {
    const auto from = buckets_ - level_, to = buckets_;
    auto i = std::exchange(bucket(from), 0);
    grow();
    while (i != 0) {
      const auto next = store_.next(i);
      auto& head = bucket((store_.hash(i) & (2 * level_ - 1)) == to ? to : from);
      store_.next(i) = head;
      head = i;
      i = next;
    }
    if (buckets_ == 2 * level_) level_ *= 2;
  }

  Store& store_;
  std::vector<std::unique_ptr<std::uint32_t[]>> pieces_;
  std::uint32_t level_ = 1;  // a power of two; level_ ≤ buckets_ < 2 * level_
  std::uint32_t buckets_ = 0;
  std::size_t count_ = 0;
};

// 64 → 64 bits, every input bit reaching every output bit.
inline std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ULL;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ULL;
  return x ^ (x >> 32);
}

// Keyed, so that a sandbox cannot choose names that meet in one bucket.
inline std::uint32_t hash_name(std::uint64_t key, std::uint32_t dir, std::string_view name) {
  auto h = mix(key ^ (std::uint64_t{dir} << 16) ^ name.size());
  while (!name.empty()) {
    std::uint64_t word = 0;
    const auto n = std::min(name.size(), sizeof word);
    std::memcpy(&word, name.data(), n);
    h = mix(h ^ word) + key;
    name.remove_prefix(n);
  }
  return static_cast<std::uint32_t>(h ^ (h >> 32));
}

}  // namespace nearbox::sync::compact
