// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"
#include "client/wire/messages.h"

// The tree format: what a kTree call streams, inside one zstd frame. Made by hand because it is the
// bulk of all metadata (docs/protocol.md, "Tree stream"): variable-length integers, inode numbers
// and times as differences, devices by index, so that zstd -1 leaves about 20 bytes an entry.
namespace nearbox::wire {

inline constexpr std::size_t kMaxTreeBlock = 256 * 1024;  // one encoded block
inline constexpr std::size_t kMaxBlockEntries = 4096;     // larger directories come in several blocks

enum TreeFlags : std::uint32_t {
  kTreeMore = 1,          // further blocks of this directory follow (not necessarily next)
  kTreeFailed = 2,        // could not be listed: `error` says why; no entries
  kTreePseudo = 4,        // /proc, /sys, /dev …: shown empty
  kTreeCrossed = 8,       // root of another file system
  kTreeNotExpanded = 16,  // only its attributes: below the depth or past the entry limit
};

struct TreeEntry {
  std::string name;
  Attr attr;
  std::string target;  // of a symlink
};

// One directory, or a part of one, with its own attributes.
struct TreeBlock {
  std::string path;  // relative to the root of the call
  Attr attr;
  std::uint32_t flags = 0;
  std::int32_t error = 0;
  std::vector<TreeEntry> entries;
};

// Appends encoded blocks to `out`. Stateful: differences run through the whole stream.
class TreeEncoder {
 public:
  void add(const TreeBlock& block, Bytes& out);

 private:
  std::vector<std::uint64_t> devices_;
  std::uint64_t last_ino_ = 0;
  std::int64_t last_mtime_ns_ = 0;
};

// Takes decompressed bytes in pieces of any size and hands out whole blocks.
// Errors:  EPROTO when the bytes break the format or a limit; the decoder is then dead.
// Bounded: keeps at most one block (kMaxTreeBlock) between calls.
class TreeDecoder {
 public:
  using Sink = std::function<void(TreeBlock&&)>;
  base::Result<void> feed(ByteView bytes, const Sink& sink);
  bool at_block_boundary() const { return pending_.empty(); }

 private:
  base::Result<TreeBlock> decode_block(ByteView body);
  Bytes pending_;
  std::vector<std::uint64_t> devices_;
  std::uint64_t last_ino_ = 0;
  std::int64_t last_mtime_ns_ = 0;
  bool dead_ = false;
};

}  // namespace nearbox::wire
