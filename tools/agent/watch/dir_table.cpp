// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/dir_table.h"

#include <memory>

namespace nearbox::agent {

DirTable::Dir* DirTable::use(At at) {
  order_.splice(order_.begin(), order_, at);
  return &*at;
}

DirTable::Dir* DirTable::find(wire::NodeId node) {
  const auto it = by_node_.find(node);
  return it == by_node_.end() ? nullptr : use(it->second);
}

DirTable::Dir* DirTable::find(std::string_view key) {
  const auto it = by_key_.find(key);
  return it == by_key_.end() ? nullptr : use(it->second);
}

void DirTable::drop(At at) {
  by_key_.erase(*at->key);
  by_node_.erase(at->node);
  order_.erase(at);
}

void DirTable::erase(std::string_view key) {
  if (const auto it = by_key_.find(key); it != by_key_.end()) drop(it->second);
}

DirTable::Dir* DirTable::put(wire::NodeId node, std::string_view key) {
  auto kept = std::make_shared<const std::string>(key);
  erase(*kept);
  if (const auto it = by_node_.find(node); it != by_node_.end()) drop(it->second);
  while (order_.size() >= limit_) drop(std::prev(order_.end()));
  order_.push_front({node, std::move(kept), {}, false, 0});
  by_node_[node] = order_.begin();
  by_key_[*order_.front().key] = order_.begin();
  return &order_.front();
}

}  // namespace nearbox::agent
