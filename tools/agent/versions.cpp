// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/versions.h"

#include <algorithm>
#include <cstdlib>
#include <type_traits>

namespace nearbox::agent {
namespace {

std::uint64_t mix(wire::NodeId node) {
  std::uint64_t x = node.ino * 0x9e3779b97f4a7c15ULL ^ node.dev * 0xc2b2ae3d27d4eb4fULL;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  return x ^ (x >> 29);
}

}  // namespace

thread_local bool Uncounted::here_ = false;

Versions::~Versions() { std::free(table_.load()); }

Versions& Versions::process() {
  static Versions* const versions = new Versions;  // lives as long as the last thread
  return *versions;
}

void Versions::enable() {
  // calloc: the kernel's zero pages, so that a table hardly used costs hardly anything.
  static_assert(std::is_trivially_copyable_v<Bucket>);
  if (table_.load() == nullptr) {
    auto* fresh = static_cast<Bucket*>(std::calloc(kVersionBuckets, sizeof(Bucket)));
    Bucket* none = nullptr;
    if (fresh == nullptr || !table_.compare_exchange_strong(none, fresh)) std::free(fresh);
  }
  bump_all();
  enabled_.store(true, std::memory_order_release);
}

void Versions::set_blind(const std::set<std::uint64_t>& devices) {
  std::size_t i = 0;
  for (const auto dev : devices) {
    if (i < kMaxBlind) blind_[i++].store(dev + 1);
  }
  while (i < kMaxBlind) blind_[i++].store(0);
}

bool Versions::blind(std::uint64_t dev) const {
  for (const auto& one : blind_) {
    const auto at = one.load(std::memory_order_relaxed);
    if (at == 0 || at == dev + 1) return at != 0;
  }
  return false;
}

Versions::Bucket& Versions::bucket_of(Bucket* table, wire::NodeId node, std::size_t& lock) const {
  const auto hash = mix(node);
  lock = hash % kLocks;
  return table[hash % kVersionBuckets];
}

std::uint64_t Versions::of(wire::NodeId node, std::uint64_t as_of) const {
  if (!enabled() || Uncounted::here() || blind(node.dev)) return 0;
  std::uint64_t version = floor_.load(std::memory_order_acquire);
  if (Bucket* const table = table_.load(std::memory_order_acquire); table != nullptr) {
    std::size_t lock = 0;
    const Bucket& bucket = bucket_of(table, node, lock);
    const base::MutexLock held(locks_[lock]);
    std::uint64_t own = bucket.floor;
    for (const Slot& slot : bucket.slots) {
      if (slot.version != 0 && slot.node == node) own = slot.version;
    }
    version = std::max(version, own);
  }
  return std::min(version, as_of);
}

std::uint64_t Versions::bump(wire::NodeId node, std::uint64_t version) {
  if (!enabled() || blind(node.dev)) return 0;
  Bucket* const table = table_.load(std::memory_order_acquire);
  if (table == nullptr) {  // no memory for it: one version for all
    raise_floor(version);
    return version;
  }
  std::size_t lock = 0;
  Bucket& bucket = bucket_of(table, node, lock);
  const base::MutexLock held(locks_[lock]);
  Slot* into = nullptr;
  for (Slot& slot : bucket.slots) {
    if (slot.version != 0 && slot.node == node) {
      slot.version = std::max(slot.version, version);
      return version;
    }
    if (into == nullptr || slot.version < into->version) into = &slot;
  }
  bucket.floor = std::max(bucket.floor, into->version);
  *into = {node, version};
  return version;
}

void Versions::bump_all() { raise_floor(unique()); }

void Versions::raise_floor(std::uint64_t version) {
  auto before = floor_.load();
  while (before < version && !floor_.compare_exchange_weak(before, version)) {
  }
}

}  // namespace nearbox::agent
