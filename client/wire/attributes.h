// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstdint>

#include "client/wire/codec.h"

// What a node of the sandbox is. See messages.h.
namespace nearbox::wire {

struct Attr {
  std::uint64_t ino = 0;
  std::uint64_t dev = 0;   // st_dev of the sandbox; with ino it identifies a node
  std::uint32_t mode = 0;  // type and permission bits
  std::uint32_t nlink = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t rdev = 0;
  std::uint64_t size = 0;
  std::uint64_t blocks = 0;   // 512-byte units
  std::int64_t mtime_ns = 0;  // since the epoch, as are all times
  std::int64_t ctime_ns = 0;
  std::uint64_t version = 0;  // the agent's change counter for this node; 0: nothing is watched.
                              // Beside bytes: as it was before the first of them was read
  std::uint32_t birth = 0;    // birth_of() the node's time of birth; 0: not known
  bool operator==(const Attr&) const = default;
};
template <class Ar, class M>
void Attr_fields(Ar& ar, M& m) {
  ar.num(m.ino), ar.num(m.dev), ar.num(m.mode), ar.num(m.nlink), ar.num(m.uid), ar.num(m.gid);
  ar.num(m.rdev), ar.num(m.size), ar.num(m.blocks), ar.num(m.mtime_ns), ar.num(m.ctime_ns);
  ar.num(m.version), ar.num(m.birth);
}
NEARBOX_FIELDS(Attr)

// Which node is meant. Compared and ordered by its number alone, as a key; whether two are the same file is
// for same_node() to say, since a file system gives the number of a file that went to a new one.
struct NodeId {
  std::uint64_t dev = 0;
  std::uint64_t ino = 0;
  std::uint32_t birth = 0;  // as in Attr
  bool operator==(const NodeId& other) const { return dev == other.dev && ino == other.ino; }
  std::strong_ordering operator<=>(const NodeId& other) const {
    return dev != other.dev ? dev <=> other.dev : ino <=> other.ino;
  }
};
template <class Ar, class M>
void NodeId_fields(Ar& ar, M& m) {
  ar.num(m.dev), ar.num(m.ino), ar.num(m.birth);
}
NEARBOX_FIELDS(NodeId)

inline NodeId identity(const Attr& attr) { return {attr.dev, attr.ino, attr.birth}; }

// A birth that is not known says nothing.
inline bool same_birth(std::uint32_t a, std::uint32_t b) { return a == b || a == 0 || b == 0; }
inline bool same_node(const NodeId& a, const NodeId& b) { return a == b && same_birth(a.birth, b.birth); }
inline bool same_node(const Attr& a, const Attr& b) { return same_node(identity(a), identity(b)); }

// A time of birth in ns since the epoch as Attr tells it: in steps of 2^16 ns, the lowest 32 bits; never 0.
// Coarse enough to lie a byte from the change time in most trees (tree.h), finer than the clocks of most
// kernels.
inline constexpr unsigned kBirthShift = 16;
inline std::uint32_t birth_of(std::int64_t ns) {
  const auto birth = static_cast<std::uint32_t>(static_cast<std::uint64_t>(ns) >> kBirthShift);
  return birth != 0 ? birth : 1;
}

}  // namespace nearbox::wire
