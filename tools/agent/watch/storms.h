// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <unordered_map>
#include <vector>

#include "tools/agent/watch/hint.h"
#include "tools/agent/watch/node_hash.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxStorms = 256;        // directories at a time
inline constexpr std::size_t kMaxNamesPerDir = 4096;  // that wait; then the directory is one
inline constexpr std::chrono::milliseconds kFirstStormInterval{200};
inline constexpr std::chrono::milliseconds kLongestStormInterval{5000};
inline constexpr std::chrono::milliseconds kStormOver{200};  // without an event

// Directories in which more happens than is looked at name by name: the clients read them again, at once,
// then after 200, 400 … 5,000 ms while it goes on, and once more when it is over.
//
// Threads: one. The clock is the caller's.
// Bounds:  kMaxStorms; then begin() is false.
class Storms {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  struct Due {
    wire::NodeId dir;
    HandleRef place;
  };

  bool any() const { return !storms_.empty(); }
  bool covers(wire::NodeId dir) const { return storms_.count(dir) != 0; }
  bool begin(wire::NodeId dir, const HandleRef& place, TimePoint now);
  // Something happened in one of them.
  void note(wire::NodeId dir, TimePoint now);
  std::optional<TimePoint> next_due() const;
  // Those that are to be read again; with `all` each in which anything happened since. What is over is
  // forgotten.
  std::vector<Due> take(TimePoint now, bool all);
  void clear() { storms_.clear(); }

 private:
  struct Storm {
    HandleRef place;
    bool dirty = true;
    TimePoint last;
    TimePoint due;
    std::chrono::milliseconds interval = kFirstStormInterval;
  };
  std::unordered_map<wire::NodeId, Storm, NodeHash> storms_;
};

}  // namespace nearbox::agent
