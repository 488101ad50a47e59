// SPDX-License-Identifier: Apache-2.0
#include "fs/core/inode_table.h"

#include <algorithm>
#include <utility>

namespace nearbox::fs {

using base::MutexLock;
using sync::kNoNode;
using sync::NodeIndex;

void Orphans::hold(NodeIndex node) {
  MutexLock lock(mu_);
  ++holds_[node].sessions;
}

std::uint64_t Orphans::release(NodeIndex node) {
  MutexLock lock(mu_);
  const auto it = holds_.find(node);
  if (it == holds_.end() || --it->second.sessions != 0) return 0;
  const auto orphan = it->second.orphan;
  holds_.erase(it);
  return orphan;
}

bool Orphans::keep(NodeIndex node, std::uint64_t orphan) {
  MutexLock lock(mu_);
  const auto it = holds_.find(node);
  if (it == holds_.end()) return false;
  it->second.orphan = orphan;
  return true;
}

std::uint64_t Orphans::number(NodeIndex node) const {
  MutexLock lock(mu_);
  const auto it = holds_.find(node);
  return it == holds_.end() ? 0 : it->second.orphan;
}

void Orphans::clear_numbers() {
  MutexLock lock(mu_);
  for (auto& [node, hold] : holds_) hold.orphan = 0;
}

InodeTable::InodeTable(NodeIndex root) {
  MutexLock lock(mu_);
  inodes_[kRootIno] = {root, 1, {}};
  nodes_[root] = kRootIno;
}

NodeIndex InodeTable::node(Ino ino) const {
  MutexLock lock(mu_);
  const auto it = inodes_.find(ino);
  return it == inodes_.end() ? kNoNode : it->second.node;
}

Ino InodeTable::ino(NodeIndex node) const {
  MutexLock lock(mu_);
  const auto it = nodes_.find(node);
  return it == nodes_.end() ? 0 : it->second;
}

InodeTable::Ref InodeTable::add(NodeIndex node) {
  MutexLock lock(mu_);
  const auto [it, fresh] = nodes_.try_emplace(node, next_);
  if (fresh) {
    inodes_[next_++] = {node, 1, {}};
  } else {
    ++inodes_[it->second].count;
  }
  return {it->second, fresh};
}

std::optional<NodeIndex> InodeTable::forget(Ino ino, std::uint64_t count) {
  MutexLock lock(mu_);
  if (ino == kRootIno) return std::nullopt;
  const auto it = inodes_.find(ino);
  if (it == inodes_.end()) {
    ++bad_;
    return std::nullopt;
  }
  if (count > it->second.count) ++bad_;
  if (count < it->second.count) {
    it->second.count -= count;
    return std::nullopt;
  }
  const NodeIndex node = it->second.node;
  nodes_.erase(node);
  inodes_.erase(it);
  return node;
}

std::vector<NodeIndex> InodeTable::clear() {
  MutexLock lock(mu_);
  std::vector<NodeIndex> gone;
  gone.reserve(inodes_.size());
  for (auto it = inodes_.begin(); it != inodes_.end();) {
    if (it->first == kRootIno) {
      ++it;
      continue;
    }
    gone.push_back(it->second.node);
    nodes_.erase(it->second.node);
    it = inodes_.erase(it);
  }
  return gone;
}

std::vector<Ino> InodeTable::all() const {
  MutexLock lock(mu_);
  std::vector<Ino> inos;
  inos.reserve(inodes_.size());
  for (const auto& [ino, entry] : inodes_) inos.push_back(ino);
  return inos;
}

void InodeTable::remember_names() {
  MutexLock lock(mu_);
  remember_ = true;
}

std::optional<InodeTable::Name> InodeTable::named(Ino ino, Ino parent, std::string_view name) {
  MutexLock lock(mu_);
  if (!remember_) return std::nullopt;
  const auto it = inodes_.find(ino);
  if (it == inodes_.end()) return std::nullopt;
  auto& names = it->second.names;
  const auto same = [&](const Name& one) { return one.first == parent && one.second == name; };
  if (std::any_of(names.begin(), names.end(), same)) return std::nullopt;
  std::optional<Name> given_up;
  if (names.size() >= kMaxNames) {
    given_up = std::move(names.front());
    names.erase(names.begin());
  }
  names.emplace_back(parent, name);
  return given_up;
}

std::vector<InodeTable::Name> InodeTable::names() const {
  MutexLock lock(mu_);
  std::vector<Name> all;
  for (const auto& [ino, entry] : inodes_) all.insert(all.end(), entry.names.begin(), entry.names.end());
  return all;
}

std::size_t InodeTable::size() const {
  MutexLock lock(mu_);
  return inodes_.size();
}

std::uint64_t InodeTable::bad_forgets() const {
  MutexLock lock(mu_);
  return bad_;
}

}  // namespace nearbox::fs
