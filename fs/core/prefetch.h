// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "client/api/agent_link.h"
#include "fs/core/block_cache.h"
#include "sync/engine/tree_store.h"

namespace nearbox::fs {

struct PrefetchOptions {
  std::uint64_t max_file_bytes = 256 * 1024;      // larger files have read-ahead of their own
  std::uint64_t first_window = 256 * 1024;        // ahead of a reader of whom nothing is known
  std::uint64_t max_window = 8ull * 1024 * 1024;  // ahead of one reader, at most …
  std::uint64_t window_rate = 125'000'000;      // … what this many bytes a second bring in two round trips
  std::uint64_t least_window = 512 * 1024;      // … and this at least
  std::uint64_t start_bytes = 2 * 1024 * 1024;  // fetched on trust
  std::uint64_t max_credit = 32ull * 1024 * 1024;  // earned by what was read and not yet spent
  std::uint64_t batch_bytes = 256 * 1024;          // of one call
  std::size_t batch_files = 64;
  std::size_t max_batches = 16;        // calls in flight
  std::size_t max_walks = 8;           // readers followed at one time
  std::size_t max_ahead_files = 8192;  // fetched and not yet read, remembered
  std::size_t max_steps = 4096;        // names looked at in one go
};

struct PrefetchStats {
  std::uint64_t asked_bytes = 0;  // prefetched, ever
  std::uint64_t used_bytes = 0;   // of these, read by somebody
  std::uint64_t read_bytes = 0;   // small files that somebody began to read
  std::uint64_t unforeseen = 0;   // files among them that no guess had named
  std::size_t walks = 0, ahead_files = 0, batches = 0;
};

// Guesses which small files are read next and has the block cache fetch them: the files beside one that
// is read, and, once a reader follows the order of the listing, what comes after them in that order
// through the whole tree (grep -r, tsc, a bundler).
//
// Owns:    nothing of the tree, the cache and the link, which outlive it.
// Threads: any; on_read() does not block and looks at max_steps names at most.
// Bounds:  PrefetchOptions. In all it fetches at most start_bytes and twice what was read; a reader who
//          jumps about earns little and costs little.
class Prefetcher {
 public:
  Prefetcher(sync::TreeStore& tree, BlockCache& cache, api::AgentLink& link, PrefetchOptions options = {});
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Somebody begins to read a regular file.
  void on_read(sync::NodeIndex node, const wire::Attr& attr);
  PrefetchStats stats() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nearbox::fs
