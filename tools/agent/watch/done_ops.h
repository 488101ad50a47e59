// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "client/wire/changes.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxDoneKeys = 64 * 1024;  // past it every look before counts as overtaken

// What operations of this agent's clients touched since the looks that run now began: a state that was
// looked at before such an operation was recorded must not be told to its client after it, or what it was
// told is done would be undone.
//
// Threads: any for now(); all else under the caller's lock.
class DoneOps {
 public:
  // Before a look: states seen from now on are overtaken by what is recorded later.
  std::uint64_t now() const { return count_.load(std::memory_order_acquire); }

  // `dirs`: whose names changed; `names`: which ones; `nodes`: whose attributes did.
  void record(const void* owner, const std::vector<wire::NodeId>& dirs, const std::vector<std::string>& names,
              const std::vector<wire::NodeId>& nodes);
  // Whether an operation of the owner touched what a state speaks of after `as_of`.
  bool overtook(const void* owner, const wire::NameState& state, std::uint64_t as_of) const;
  // No look runs.
  void forget();

 private:
  struct Key {
    const void* owner;
    std::string place;  // place_key()
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const;
  };
  void note(const void* owner, wire::NodeId node, const std::string& name, std::uint64_t number);
  bool after(const void* owner, wire::NodeId node, const std::string& name, std::uint64_t as_of) const;

  std::atomic<std::uint64_t> count_{0};
  std::uint64_t flooded_ = 0;
  std::unordered_map<Key, std::uint64_t, KeyHash> last_;
};

}  // namespace nearbox::agent
