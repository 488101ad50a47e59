// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tools/agent/watch/hint.h"
#include "tools/agent/watch/node_hash.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxNames = 128 * 1024;              // in the table
inline constexpr std::size_t kMaxNamesBytes = 32 * 1024 * 1024;   // of them with their targets
inline constexpr std::size_t kMaxTargets = 1024;                  // of one name; then it counts as lost
inline constexpr std::chrono::milliseconds kFirstInterval{5};     // between two looks at a busy name
inline constexpr std::chrono::milliseconds kLongestInterval{50};  // … that stays busy: 20 looks a second
inline constexpr std::chrono::milliseconds kCooling{200};         // then it counts as quiet again

// The names to look at, each at most once a while: a quiet name at once, one that keeps changing after
// 5, 10, 20, 40 and then always 50 ms. What came meanwhile is one look; the last state is always seen.
//
// Threads: one. The clock is the caller's.
// Bounds:  kMaxNames, kMaxNamesBytes, kMaxTargets; then add() is false and the caller has lost something.
class Coalescer {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  struct Item {
    wire::NodeId dir;
    std::string name;
    std::uint32_t flags = 0;
    std::vector<std::string> targets;  // different ones that content changes were told of
    HandleRef place;                   // as in the last hint that had one
  };

  bool add(const Hint& hint, TimePoint now);

  // When the next look is due; nothing when there is none to come.
  std::optional<TimePoint> next_due() const;
  // Up to `max` names that are due at `now`, grouped by directory; with `all` those that wait as well.
  std::vector<Item> take(TimePoint now, std::size_t max, bool all = false);
  // What waits for this name, as if it were due: its directory is being listed.
  std::optional<Item> take_name(wire::NodeId dir, std::string_view name, TimePoint now);
  // The same, and it waits on.
  std::optional<Item> waiting(wire::NodeId dir, std::string_view name) const;

  // The flags of what waits for this name; 0: nothing does.
  std::uint32_t waiting_flags(wire::NodeId dir, std::string_view name) const;
  bool pending() const { return pending_ > 0; }
  // How many names of this directory wait, its own node among them; and all of those, which wait no more.
  std::size_t waiting_in(wire::NodeId dir) const;
  std::vector<Item> take_dir(wire::NodeId dir);
  void clear();
  std::size_t size() const { return index_.size(); }

 private:
  using Id = std::uint32_t;
  struct Entry {
    std::string key;  // of place_key()
    std::uint32_t flags = 0;
    std::vector<std::string> targets;
    HandleRef place;
    TimePoint last{};
    std::chrono::milliseconds interval{0};  // 0: quiet until now
    TimePoint due{};
    bool pending = false;
    std::uint32_t uses = 0;  // tells a used-again slot from the one it was
  };
  struct Waiting {
    TimePoint due;
    Id id;
    std::uint32_t uses;
    bool operator>(const Waiting& other) const { return due > other.due; }
  };
  struct Cooling {
    TimePoint until;
    Id id;
    std::uint32_t uses;
  };

  bool live(Id id, std::uint32_t uses) const { return entries_[id].uses == uses; }
  Id entry_of(const Hint& hint);
  Item take_entry(Id id, TimePoint now);
  void forget(Id id);
  void sweep(TimePoint now);

  std::deque<Entry> entries_;  // never moved: index_ points into them
  std::vector<Id> free_;
  std::unordered_map<std::string_view, Id> index_;
  std::unordered_map<wire::NodeId, std::size_t, NodeHash> waiting_in_;
  mutable std::priority_queue<Waiting, std::vector<Waiting>, std::greater<>> waiting_;
  std::deque<Cooling> cooling_;
  std::size_t pending_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace nearbox::agent
