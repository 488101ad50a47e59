// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/messages.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxOrphans = 4096;

// Files that were unlinked while a client still had them open, by the operation that did it.
//
// Owns:    their descriptors, shared with whoever is using one.
// Threads: any.
// Bounds:  kMaxOrphans and half of the descriptors this process may have, whichever is less.
class OrphanTable {
 public:
  using FdPtr = std::shared_ptr<base::UniqueFd>;
  explicit OrphanTable(std::size_t limit = default_limit()) : limit_(limit) {}
  static std::size_t default_limit();

  // EMFILE when the table is full.
  base::Result<void> keep(std::uint64_t number, base::UniqueFd fd) EXCLUDES(mu_);
  // ESTALE: not (or no longer) kept, or another node than `expect` when that is set: numbers begin
  // again with each session.
  base::Result<FdPtr> get(std::uint64_t number, wire::NodeId expect) EXCLUDES(mu_);
  void forget(std::uint64_t number) EXCLUDES(mu_);
  std::size_t size() EXCLUDES(mu_);

 private:
  const std::size_t limit_;
  base::Mutex mu_;  // rank: leaf
  std::unordered_map<std::uint64_t, FdPtr> files_ GUARDED_BY(mu_);
};

}  // namespace nearbox::agent
