// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/done_ops.h"

#include "tools/agent/watch/node_hash.h"

namespace nearbox::agent {

std::size_t DoneOps::KeyHash::operator()(const Key& key) const {
  return std::hash<std::string>{}(key.place) ^ std::hash<const void*>{}(key.owner);
}

void DoneOps::note(const void* owner, wire::NodeId node, const std::string& name, std::uint64_t number) {
  if (node.ino == 0) return;
  if (last_.size() >= kMaxDoneKeys) {
    last_.clear();
    flooded_ = number;
  }
  last_[Key{owner, place_key(node, name)}] = number;
}

void DoneOps::record(const void* owner, const std::vector<wire::NodeId>& dirs,
                     const std::vector<std::string>& names, const std::vector<wire::NodeId>& nodes) {
  const auto number = count_.load() + 1;
  for (const auto& dir : dirs) {
    note(owner, dir, {}, number);
    for (const auto& name : names) note(owner, dir, name, number);
  }
  for (const auto& node : nodes) note(owner, node, {}, number);
  count_.store(number, std::memory_order_release);
}

bool DoneOps::after(const void* owner, wire::NodeId node, const std::string& name,
                    std::uint64_t as_of) const {
  if (node.ino == 0) return false;
  const auto it = last_.find(Key{owner, place_key(node, name)});
  return it != last_.end() && it->second > as_of;
}

bool DoneOps::overtook(const void* owner, const wire::NameState& state, std::uint64_t as_of) const {
  if (count_.load() <= as_of) return false;
  if (flooded_ > as_of) return true;
  return after(owner, state.dir, state.name, as_of) || after(owner, wire::identity(state.attr), {}, as_of);
}

void DoneOps::forget() { last_.clear(); }

}  // namespace nearbox::agent
