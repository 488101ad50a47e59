// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nearbox::sync::compact {

using DentryIndex = std::uint32_t;  // 0 is none

// A name in a directory.
struct Dentry {
  std::uint64_t cookie = 0;
  std::uint32_t dir = 0;      // node
  std::uint32_t node = 0;     // what it leads to
  std::uint32_t name = 0;     // in the arena: a length byte, then the bytes
  std::uint32_t hash = 0;     // of directory and name
  std::uint32_t next = 0;     // of the name index
  DentryIndex next_name = 0;  // of the node
};
static_assert(sizeof(Dentry) == 32);

// The names of one directory in the order of their cookies.
//
// Runs of at most kRun names: one is moved by a removal, and small neighbours grow together, so
// that emptying a huge directory in any order stays cheap and leaves no gaps to skip.
class EntryList {
 public:
  std::size_t size() const { return size_; }

  // `d` has the highest cookie so far.
  void add(DentryIndex d) {
    if (runs_.empty() || runs_.back().size() == kRun) {
      runs_.emplace_back();
      if (runs_.size() == 1) runs_.back().reserve(4);
    }
    runs_.back().push_back(d);
    ++size_;
  }
  // `d` has a cookie of its own, wherever it stands among the others.
  template <class Dentries>
  void insert(DentryIndex d, const Dentries& dentries) {
    const auto cookie = dentries[d].cookie;
    if (runs_.empty() || dentries[runs_.back().back()].cookie < cookie) return add(d);
    const auto run = run_of(cookie, dentries);
    const auto at = std::partition_point(run->begin(), run->end(),
                                         [&](DentryIndex e) { return dentries[e].cookie < cookie; });
    run->insert(at, d);
    ++size_;
    if (run->size() <= kRun) return;
    const Run second(run->begin() + kRun / 2, run->end());
    run->resize(kRun / 2);
    runs_.insert(run + 1, second);
  }
  template <class Dentries>
  void remove(DentryIndex d, const Dentries& dentries) {
    const auto run = run_of(dentries[d].cookie, dentries);
    run->erase(std::find(run->begin(), run->end(), d));
    --size_;
    if (run->empty()) {
      runs_.erase(run);
      return;
    }
    if (run->size() >= kRun / 4) return;
    if (run + 1 != runs_.end() && run->size() + (run + 1)->size() <= kRun / 2) {
      join(run);
    } else if (run != runs_.begin() && run->size() + (run - 1)->size() <= kRun / 2) {
      join(run - 1);
    }
  }
  template <class Fn>
  void each(Fn&& fn) const {
    for (const auto& run : runs_) {
      for (const auto d : run) fn(d);
    }
  }
  // Until fn returns false.
  template <class Dentries, class Fn>
  void each_after(std::uint64_t cookie, const Dentries& dentries, Fn&& fn) const {
    for (auto run = const_cast<EntryList*>(this)->run_of(cookie, dentries); run != runs_.end(); ++run) {
      const auto first = std::partition_point(run->begin(), run->end(),
                                              [&](DentryIndex d) { return dentries[d].cookie <= cookie; });
      for (auto d = first; d != run->end(); ++d) {
        if (!fn(*d)) return;
      }
    }
  }
  // Gives back what a directory grew for while it was read.
  void trim() {
    runs_.shrink_to_fit();
    if (!runs_.empty()) runs_.back().shrink_to_fit();
  }
  std::size_t memory_bytes() const {
    auto bytes = runs_.capacity() == 0 ? 0 : runs_.capacity() * sizeof(runs_[0]) + kHeapBlock;
    for (const auto& run : runs_) bytes += run.capacity() * sizeof(DentryIndex) + kHeapBlock;
    return bytes;
  }

 private:
  using Run = std::vector<DentryIndex>;
  static constexpr std::size_t kRun = 256;
  static constexpr std::size_t kHeapBlock = 16;  // malloc's own bytes and rounding

  // The last run that starts at or before `cookie`, else the first.
  template <class Dentries>
  std::vector<Run>::iterator run_of(std::uint64_t cookie, const Dentries& dentries) {
    const auto after = std::partition_point(
        runs_.begin(), runs_.end(), [&](const Run& run) { return dentries[run.front()].cookie <= cookie; });
    return after == runs_.begin() ? after : after - 1;
  }
  void join(std::vector<Run>::iterator run) {
    run->insert(run->end(), (run + 1)->begin(), (run + 1)->end());
    runs_.erase(run + 1);
  }

  std::vector<Run> runs_;
  std::size_t size_ = 0;
};

}  // namespace nearbox::sync::compact
