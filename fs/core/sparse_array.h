// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace nearbox::fs {

// Values by small numbers that come in runs; numbers without one cost next to nothing.
//
// Owns:    pages of kPage values, made by the first value in them and given up with the last.
// Threads: none of its own; the owner locks.
// Bounds:  those of the numbers, which the owner sets.
// Units:   a value is absent while it equals T{}. 8 bytes a page for the numbers below the largest.
template <typename T>
class SparseArray {
 public:
  static constexpr std::size_t kPage = 512;

  T get(std::uint32_t at) const {
    const auto page = at / kPage;
    return page < pages_.size() && pages_[page] ? pages_[page]->values[at % kPage] : T{};
  }
  void set(std::uint32_t at, const T& value) {
    const auto page = at / kPage;
    const bool present = !(value == T{});
    if (page >= pages_.size()) {
      if (!present) return;
      pages_.resize(page + 1);
    }
    if (!pages_[page]) {
      if (!present) return;
      pages_[page] = std::make_unique<Page>();
    }
    auto& old = pages_[page]->values[at % kPage];
    const bool was = !(old == T{});
    old = value;
    if (was == present) return;
    auto& used = pages_[page]->used;
    present ? ++size_ : --size_;
    present ? ++used : --used;
    if (used == 0) pages_[page].reset();
  }
  // Calls what(number, value) for each that is present.
  template <typename F>
  void each(F what) const {
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      if (!pages_[page]) continue;
      for (std::size_t i = 0; i < kPage; ++i) {
        const T& value = pages_[page]->values[i];
        if (!(value == T{})) what(static_cast<std::uint32_t>(page * kPage + i), value);
      }
    }
  }
  std::size_t size() const { return size_; }

 private:
  struct Page {
    std::array<T, kPage> values{};
    std::uint32_t used = 0;
  };
  std::vector<std::unique_ptr<Page>> pages_;
  std::size_t size_ = 0;
};

}  // namespace nearbox::fs
