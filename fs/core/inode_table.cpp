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
  sessions_.set(node, sessions_.get(node) + 1);
}

std::uint64_t Orphans::release(NodeIndex node) {
  MutexLock lock(mu_);
  const auto sessions = sessions_.get(node);
  if (sessions == 0) return 0;
  sessions_.set(node, sessions - 1);
  if (sessions > 1) return 0;
  const auto it = kept_.find(node);
  if (it == kept_.end()) return 0;
  const auto orphan = it->second;
  kept_.erase(it);
  return orphan;
}

bool Orphans::keep(NodeIndex node, std::uint64_t orphan) {
  MutexLock lock(mu_);
  if (sessions_.get(node) == 0) return false;
  kept_[node] = orphan;
  return true;
}

std::uint64_t Orphans::number(NodeIndex node) const {
  MutexLock lock(mu_);
  const auto it = kept_.find(node);
  return it == kept_.end() ? 0 : it->second;
}

void Orphans::clear_numbers() {
  MutexLock lock(mu_);
  kept_.clear();
}

InodeTable::InodeTable(NodeIndex root) : root_(root) {}

InodeTable::Entry InodeTable::find(Ino ino) const {
  const auto entry = inodes_.get(node_of(ino));
  return number(node_of(ino), entry) == ino ? entry : Entry{};
}

NodeIndex InodeTable::node(Ino ino) const {
  if (ino == kRootIno) return root_;
  MutexLock lock(mu_);
  return find(ino).count == 0 ? kNoNode : node_of(ino);
}

Ino InodeTable::ino(NodeIndex node) const {
  if (node == root_) return kRootIno;
  MutexLock lock(mu_);
  const auto entry = inodes_.get(node);
  return entry.count == 0 ? 0 : number(node, entry);
}

InodeTable::Ref InodeTable::add(NodeIndex node) {
  if (node == root_) return {kRootIno, false};
  MutexLock lock(mu_);
  auto entry = inodes_.get(node);
  const bool fresh = entry.count == 0;
  if (fresh) {
    if (++turn_ == 0) ++turn_;  // 0 would make small numbers, of which the root's is one
    entry.turn = turn_;
  }
  ++entry.count;
  inodes_.set(node, entry);
  return {number(node, entry), fresh};
}

std::optional<NodeIndex> InodeTable::forget(Ino ino, std::uint64_t count) {
  MutexLock lock(mu_);
  if (ino == kRootIno) return std::nullopt;
  auto entry = find(ino);
  if (entry.count == 0 || count > entry.count) ++bad_;
  if (entry.count == 0) return std::nullopt;
  if (count < entry.count) {
    entry.count -= count;
    inodes_.set(node_of(ino), entry);
    return std::nullopt;
  }
  inodes_.set(node_of(ino), {});
  names_.erase(ino);
  return node_of(ino);
}

std::vector<NodeIndex> InodeTable::clear() {
  MutexLock lock(mu_);
  std::vector<NodeIndex> gone;
  gone.reserve(inodes_.size());
  inodes_.each([&](NodeIndex node, const Entry&) { gone.push_back(node); });
  inodes_ = {};
  names_.clear();
  return gone;
}

std::vector<Ino> InodeTable::all() const {
  MutexLock lock(mu_);
  std::vector<Ino> inos{kRootIno};
  inos.reserve(inodes_.size() + 1);
  inodes_.each([&](NodeIndex node, const Entry& entry) { inos.push_back(number(node, entry)); });
  return inos;
}

void InodeTable::remember_names() {
  MutexLock lock(mu_);
  remember_ = true;
}

std::optional<InodeTable::Name> InodeTable::named(Ino ino, Ino parent, std::string_view name) {
  MutexLock lock(mu_);
  if (!remember_) return std::nullopt;
  if (ino != kRootIno && find(ino).count == 0) return std::nullopt;
  auto& names = names_[ino];
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
  for (const auto& [ino, names] : names_) all.insert(all.end(), names.begin(), names.end());
  return all;
}

std::size_t InodeTable::size() const {
  MutexLock lock(mu_);
  return inodes_.size() + 1;  // the root
}

std::uint64_t InodeTable::bad_forgets() const {
  MutexLock lock(mu_);
  return bad_;
}

}  // namespace nearbox::fs
