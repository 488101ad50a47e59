// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/storms.h"

#include <algorithm>

namespace nearbox::agent {

bool Storms::begin(wire::NodeId dir, const HandleRef& place, TimePoint now) {
  if (storms_.size() >= kMaxStorms) return false;
  storms_[dir] = {place, true, now, now, kFirstStormInterval};
  return true;
}

void Storms::note(wire::NodeId dir, TimePoint now) {
  const auto it = storms_.find(dir);
  if (it == storms_.end()) return;
  it->second.dirty = true;
  it->second.last = now;
}

std::optional<Storms::TimePoint> Storms::next_due() const {
  std::optional<TimePoint> first;
  for (const auto& [dir, storm] : storms_) {
    const auto at = storm.dirty ? storm.due : storm.last + kStormOver;
    if (!first || at < *first) first = at;
  }
  return first;
}

std::vector<Storms::Due> Storms::take(TimePoint now, bool all) {
  std::vector<Due> due;
  for (auto it = storms_.begin(); it != storms_.end();) {
    auto& storm = it->second;
    if (storm.dirty && (all || storm.due <= now)) {
      due.push_back({it->first, storm.place});
      storm.dirty = false;
      storm.due = now + storm.interval;
      storm.interval = std::min(2 * storm.interval, kLongestStormInterval);
    }
    const bool over = !storm.dirty && storm.last + kStormOver <= now;
    it = over ? storms_.erase(it) : std::next(it);
  }
  return due;
}

}  // namespace nearbox::agent
