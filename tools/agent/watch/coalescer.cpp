// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/coalescer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace nearbox::agent {
namespace {

constexpr std::size_t kEntryCost = 224;  // what a name weighs besides its bytes

wire::NodeId dir_of(const std::string& key) {
  wire::NodeId dir;
  std::memcpy(&dir.dev, key.data(), sizeof dir.dev);
  std::memcpy(&dir.ino, key.data() + sizeof dir.dev, sizeof dir.ino);
  return dir;
}

}  // namespace

Coalescer::Id Coalescer::entry_of(const Hint& hint) {
  // A node without a name is told apart by its target.
  const bool nameless = hint.name.empty() && hint.dir == wire::NodeId{};
  auto key = place_key(hint.dir, nameless ? hint.target : hint.name);
  if (const auto it = index_.find(key); it != index_.end()) return it->second;
  Id id = 0;
  if (free_.empty()) {
    id = static_cast<Id>(entries_.size());
    entries_.emplace_back();
  } else {
    id = free_.back();
    free_.pop_back();
  }
  Entry& entry = entries_[id];
  entry.key = std::move(key);
  bytes_ += kEntryCost + entry.key.size();
  index_.emplace(entry.key, id);
  return id;
}

bool Coalescer::add(const Hint& hint, TimePoint now) {
  if (index_.size() >= kMaxNames || bytes_ >= kMaxNamesBytes) {
    sweep(now + kCooling);
    if (index_.size() >= kMaxNames || bytes_ >= kMaxNamesBytes) return false;
  }
  const Id id = entry_of(hint);
  Entry& entry = entries_[id];
  entry.flags |= hint.flags | kHintLook;
  if (hint.place) entry.place = hint.place;
  const bool changed = (hint.flags & (kHintContent | kHintBorn)) != 0;
  if (changed && !hint.target.empty() &&
      std::find(entry.targets.begin(), entry.targets.end(), hint.target) == entry.targets.end()) {
    if (entry.targets.size() >= kMaxTargets) return false;
    entry.targets.emplace_back(hint.target);
    bytes_ += entry.targets.back().size() + sizeof(std::string);
  }
  const auto due = (hint.flags & kHintAtOnce) != 0 ? now : std::max(now, entry.last + entry.interval);
  if (entry.pending && entry.due <= due) return true;
  if (!entry.pending) {
    ++pending_;
    ++waiting_in_[hint.dir];
  }
  entry.pending = true;
  entry.due = due;
  waiting_.push({due, id, entry.uses});
  return true;
}

std::optional<Coalescer::TimePoint> Coalescer::next_due() const {
  while (!waiting_.empty()) {
    const Waiting& first = waiting_.top();
    const Entry& entry = entries_[first.id];
    if (live(first.id, first.uses) && entry.pending && entry.due == first.due) return first.due;
    waiting_.pop();
  }
  return std::nullopt;
}

Coalescer::Item Coalescer::take_entry(Id id, TimePoint now) {
  Entry& entry = entries_[id];
  Item item{dir_of(entry.key), entry.key.substr(kPlaceDirBytes), entry.flags, std::move(entry.targets),
            std::move(entry.place)};
  for (const auto& target : item.targets) bytes_ -= target.size() + sizeof(std::string);
  const bool busy = entry.interval.count() != 0 && now < entry.last + 2 * entry.interval + kFirstInterval;
  entry.interval = busy ? std::min(2 * entry.interval, kLongestInterval) : kFirstInterval;
  entry.last = now;
  entry.flags = 0;
  entry.targets.clear();
  entry.place.reset();
  entry.pending = false;
  --pending_;
  if (const auto dir = waiting_in_.find(item.dir); --dir->second == 0) waiting_in_.erase(dir);
  cooling_.push_back({now + kCooling, id, entry.uses});
  return item;
}

std::vector<Coalescer::Item> Coalescer::take(TimePoint now, std::size_t max, bool all) {
  std::vector<Item> items;
  while (items.size() < max) {
    const auto due = next_due();
    if (!due || (*due > now && !all)) break;
    const Id id = waiting_.top().id;
    waiting_.pop();
    items.push_back(take_entry(id, now));
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.dir < b.dir; });
  sweep(now);
  return items;
}

std::optional<Coalescer::Item> Coalescer::take_name(wire::NodeId dir, std::string_view name, TimePoint now) {
  const auto it = index_.find(place_key(dir, name));
  if (it == index_.end() || !entries_[it->second].pending) return std::nullopt;
  return take_entry(it->second, now);
}

std::optional<Coalescer::Item> Coalescer::waiting(wire::NodeId dir, std::string_view name) const {
  const auto it = index_.find(place_key(dir, name));
  if (it == index_.end() || !entries_[it->second].pending) return std::nullopt;
  const Entry& entry = entries_[it->second];
  return Item{dir, std::string(name), entry.flags, entry.targets, entry.place};
}

std::uint32_t Coalescer::waiting_flags(wire::NodeId dir, std::string_view name) const {
  const auto it = index_.find(place_key(dir, name));
  return it == index_.end() ? 0 : entries_[it->second].flags;
}

void Coalescer::forget(Id id) {
  Entry& entry = entries_[id];
  bytes_ -= kEntryCost + entry.key.size();
  index_.erase(entry.key);
  const auto uses = entry.uses + 1;
  entry = Entry{};
  entry.uses = uses;
  free_.push_back(id);
}

void Coalescer::sweep(TimePoint now) {
  while (!cooling_.empty() && cooling_.front().until <= now) {
    const Cooling cold = cooling_.front();
    cooling_.pop_front();
    if (!live(cold.id, cold.uses)) continue;
    const Entry& entry = entries_[cold.id];
    // A name that was looked at since cools on behind a later record of it.
    if (!entry.pending && entry.last + kCooling <= now) forget(cold.id);
  }
}

std::size_t Coalescer::waiting_in(wire::NodeId dir) const {
  const auto it = waiting_in_.find(dir);
  return it == waiting_in_.end() ? 0 : it->second;
}

std::vector<Coalescer::Item> Coalescer::take_dir(wire::NodeId dir) {
  std::vector<Item> items;
  if (waiting_in(dir) == 0) return items;
  std::vector<Id> all;
  for (const auto& [key, id] : index_) {
    if (entries_[id].pending && dir_of(entries_[id].key) == dir) all.push_back(id);
  }
  for (const Id id : all) {
    items.push_back(take_entry(id, {}));
    forget(id);
  }
  return items;
}

void Coalescer::clear() {
  entries_.clear();
  free_.clear();
  index_.clear();
  waiting_in_.clear();
  waiting_ = {};
  cooling_.clear();
  pending_ = 0;
  bytes_ = 0;
}

}  // namespace nearbox::agent
