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
inline constexpr std::size_t kMaxTreeDevices = 4096;      // file systems in one stream

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

// What attributes are encoded against; encoder and decoder step it the same way.
struct TreeState {
  std::vector<std::uint64_t> devices;  // by index, in the order they were first seen
  std::uint64_t device = 0;            // index of the last one
  std::uint64_t ino = 0;
  std::uint64_t mtime_s = 0;
  std::uint64_t ctime_ns = 0;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t birth = 0;
};

// Appends encoded blocks to `out`. Stateful: differences run through the whole stream.
//
// The caller splits: at most kMaxBlockEntries a block, and kMaxBlockHead + the estimates of its
// entries at most kMaxTreeBlock, or the decoder refuses the block. A stream may name at most
// kMaxTreeDevices devices.
class TreeEncoder {
 public:
  static constexpr std::size_t kMaxBlockHead = kMaxPath + 256;  // path, attributes, flags, counts
  // No fewer bytes than the entry takes, whatever came before it.
  static std::size_t estimate(const TreeEntry& entry) {
    return kMaxAttrBytes + entry.name.size() + entry.target.size();
  }
  void add(const TreeBlock& block, Bytes& out);

 private:
  static constexpr std::size_t kMaxAttrBytes = 120;  // every field at its longest, and two lengths
  TreeState state_;
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
  Bytes pending_;  // the length and what came of a block not yet whole
  TreeState state_;
  bool dead_ = false;
};

}  // namespace nearbox::wire
