// SPDX-License-Identifier: Apache-2.0
#pragma once

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
  bool operator==(const Attr&) const = default;
};
template <class Ar, class M>
void Attr_fields(Ar& ar, M& m) {
  ar.num(m.ino), ar.num(m.dev), ar.num(m.mode), ar.num(m.nlink), ar.num(m.uid), ar.num(m.gid);
  ar.num(m.rdev), ar.num(m.size), ar.num(m.blocks), ar.num(m.mtime_ns), ar.num(m.ctime_ns);
  ar.num(m.version);
}
NEARBOX_FIELDS(Attr)

struct NodeId {
  std::uint64_t dev = 0;
  std::uint64_t ino = 0;
  auto operator<=>(const NodeId&) const = default;
};
template <class Ar, class M>
void NodeId_fields(Ar& ar, M& m) {
  ar.num(m.dev), ar.num(m.ino);
}
NEARBOX_FIELDS(NodeId)

}  // namespace nearbox::wire
