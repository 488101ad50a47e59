// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "client/api/agent_link.h"
#include "sync/core/mirror.h"

namespace nearbox::fs {

struct BlockCacheOptions {
  std::uint64_t max_bytes = 256ull * 1024 * 1024;       // of cached blocks
  std::uint32_t block_bytes = 128 * 1024;               // the kernel's usual read-ahead
  std::uint64_t whole_file_bytes = 1024 * 1024;         // files up to here are fetched whole
  std::uint64_t fetch_bytes = 1024 * 1024;              // one read call
  std::uint64_t max_ahead_bytes = 16ull * 1024 * 1024;  // beyond the last byte asked for
  std::size_t max_fetches = 8192;                       // calls in flight; half of what the link takes
  std::size_t max_file_fetches = 24;                    // the same for one file
  std::chrono::milliseconds prefetch_patience{50};      // and two round trips: then a reader asks by itself
  std::size_t max_ahead_fetches = 256;  // read-ahead is left out while more calls than this are in flight
  std::chrono::milliseconds deadline = std::chrono::seconds(30);  // of one fetch, and of one read
};

// What the cache needs to know of the tree. All may be called from link threads.
struct BlockCacheHooks {
  // How the agent finds the node now; nothing when it has neither a name nor a kept file.
  std::function<std::optional<wire::PathCall>(sync::NodeIndex node, const wire::NodeId& id)> locate;
  // Looks again where the node is (the agent said ESTALE or ENOENT); done may run on any thread.
  std::function<void(sync::NodeIndex node, std::function<void()> done)> refresh;
  // The agent showed other attributes than the read began with.
  std::function<void(sync::NodeIndex node, const wire::Attr& attr)> changed;
  // The node's attributes as the tree shows them. May be left out: they count as unchanged then.
  std::function<wire::Attr(sync::NodeIndex node)> attr;
  // Runs fn after `delay`, on any thread, or never once the cache is closed. May be left out: at once.
  std::function<void(std::chrono::milliseconds delay, std::function<void()> fn)> later;
};

struct BlockCacheStats {
  std::uint64_t bytes = 0;    // cached now
  std::uint64_t fetched = 0;  // from the agent, ever
  std::uint64_t hits = 0, misses = 0;
  std::size_t fetches = 0;  // in flight
  std::size_t waiters = 0;
};

// File bytes in memory, by node and version.
//
// Owns:    the blocks, least recently used first out.
// Threads: any; read() never blocks. Its function runs at once on the caller's thread when the bytes
//          are here, else on a link thread; no lock is held. The hooks run without a lock.
// Errors:  an errno: what the agent said, ESTALE when the file was replaced and its node is gone,
//          ETIMEDOUT, ESHUTDOWN after close().
// Bounds:  BlockCacheOptions. Fetches above the limits wait in order, one of each file in turn, so reads
//          of a file that is not answered do not stop reads of others.
class BlockCache {
 public:
  using Block = std::shared_ptr<const wire::Bytes>;
  struct Piece {
    Block block;
    std::size_t offset = 0, length = 0;
  };
  struct Data {
    int error = 0;
    std::vector<Piece> pieces;  // in order; fewer bytes than asked for mean end of file
    std::size_t size = 0;
    std::uint64_t fetched = 0;  // bytes that were brought and nobody had read before, whole blocks
  };
  using Done = std::function<void(Data&&)>;

  BlockCache(api::AgentLink& link, BlockCacheHooks hooks, BlockCacheOptions options = {});
  ~BlockCache();
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  // Bytes [offset, offset + length) of the file as it is with `attr` (as the mirror shows it now).
  // The caller keeps `node` pinned until done runs.
  void read(sync::NodeIndex node, const wire::Attr& attr, std::uint64_t offset, std::size_t length,
            Done done);
  // Whether all of that is cached now, or on the way.
  bool has(const wire::Attr& attr, std::uint64_t offset, std::size_t length) const;
  // Fetches small files whole, in one call, before somebody asks for them; what is here or on the way is
  // left out. Returns the bytes left out. `ended` runs once, on a link thread, unless all was left out.
  struct Wanted {
    sync::NodeIndex node = sync::kNoNode;
    wire::Attr attr;
  };
  std::uint64_t prefetch(const std::vector<Wanted>& files, std::function<void()> ended);
  // An own write took the file from `before` to `after`: what it did not touch stays cached when the
  // agent's change counter shows that nobody else wrote.
  void wrote(const wire::Attr& before, const wire::Attr& after, std::uint64_t offset, std::uint64_t length);
  // Nothing that is here, or on the way, is to be believed by reads from now on: another agent counts
  // otherwise.
  void forget();
  BlockCacheStats stats() const;
  void close();

  class Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace nearbox::fs
