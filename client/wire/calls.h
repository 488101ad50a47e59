// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/wire/attributes.h"
#include "client/wire/codec.h"
#include "client/wire/limits.h"

// Calls that look: roots, trees, reads, attributes. See messages.h.
namespace nearbox::wire {

enum Feature : std::uint64_t {
  kFeatureRoot = 1,      // the agent runs as root
  kFeatureFanotify = 2,  // whole-file-system watch possible
  kFeatureFanRename = 4,
  kFeatureOutOfCgroup = 8,  // it left the build's cgroup
  kFeatureOomLowered = 16,
};

struct InfoReply {
  std::string hostname;
  std::string kernel;
  std::string user;  // the sandbox user: whose login environment commands get
  std::string home;
  std::string work_dir;   // default DIR of mounts
  std::uint32_t uid = 0;  // of that user
  std::uint32_t gid = 0;
  std::uint32_t agent_uid = 0;
  std::int64_t boottime_ns = 0;  // CLOCK_BOOTTIME now
  std::int64_t realtime_ns = 0;
};
template <class Ar, class M>
void InfoReply_fields(Ar& ar, M& m) {
  ar.bytes(m.hostname, kMaxText), ar.bytes(m.kernel, kMaxText), ar.bytes(m.user, kMaxText);
  ar.bytes(m.home, kMaxPath), ar.bytes(m.work_dir, kMaxPath);
  ar.num(m.uid), ar.num(m.gid), ar.num(m.agent_uid), ar.num(m.boottime_ns), ar.num(m.realtime_ns);
}
NEARBOX_FIELDS(InfoReply)

struct RootOpen {
  std::string path;     // absolute, or "~" / relative: below the sandbox user's home; symlinks followed
  bool create = false;  // mkdir -p as the sandbox user
};
template <class Ar, class M>
void RootOpen_fields(Ar& ar, M& m) {
  ar.bytes(m.path, kMaxPath), ar.num(m.create);
}
NEARBOX_FIELDS(RootOpen)

struct RootReply {
  std::uint32_t root = 0;  // number to name it by, in this session; survives reconnects to the same agent
  std::string path;        // canonical absolute path
  Attr attr;
  std::uint64_t fs_type = 0;  // statfs f_type
};
template <class Ar, class M>
void RootReply_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), fields(ar, m.attr), ar.num(m.fs_type);
}
NEARBOX_FIELDS(RootReply)

struct Tree {
  std::uint32_t root = 0;
  std::string path;
  std::uint32_t depth = 0;        // levels below path; 0: all
  std::uint64_t max_entries = 0;  // stop expanding after so many; 0: no limit
};
template <class Ar, class M>
void Tree_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), ar.num(m.depth), ar.num(m.max_entries);
}
NEARBOX_FIELDS(Tree)

struct TreeReply {
  std::uint64_t entries = 0;
  std::uint64_t directories = 0;
  std::uint64_t seq = 0;  // the event sequence when the walk began: later events may repeat what was sent
  bool truncated = false;
};
template <class Ar, class M>
void TreeReply_fields(Ar& ar, M& m) {
  ar.num(m.entries), ar.num(m.directories), ar.num(m.seq), ar.num(m.truncated);
}
NEARBOX_FIELDS(TreeReply)

struct TreeHurry {
  std::uint32_t call_id = 0;
  std::string path;
};
template <class Ar, class M>
void TreeHurry_fields(Ar& ar, M& m) {
  ar.num(m.call_id), ar.bytes(m.path, kMaxPath);
}
NEARBOX_FIELDS(TreeHurry)

struct PathCall {
  std::uint32_t root = 0;
  std::string path;
  NodeId expect{};           // {0,0}: any
  std::uint64_t orphan = 0;  // != 0: the kept file of that number instead of path
};
template <class Ar, class M>
void PathCall_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.bytes(m.path, kMaxPath), fields(ar, m.expect), ar.num(m.orphan);
}
NEARBOX_FIELDS(PathCall)

struct StatMany {
  std::uint32_t root = 0;
  std::vector<std::string> paths;
};
template <class Ar, class M>
void StatMany_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.strings(m.paths, kMaxStatMany, kMaxPath);
}
NEARBOX_FIELDS(StatMany)

struct StatResult {
  std::int32_t error = 0;
  Attr attr;
  std::string target;  // of a symlink
};
template <class Ar, class M>
void StatResult_fields(Ar& ar, M& m) {
  ar.num(m.error), fields(ar, m.attr), ar.bytes(m.target, kMaxPath);
}
NEARBOX_FIELDS(StatResult)

struct StatManyReply {
  std::vector<StatResult> results;  // as many as paths, same order
};
template <class Ar, class M>
void StatManyReply_fields(Ar& ar, M& m) {
  ar.list(m.results, kMaxStatMany);
}
NEARBOX_FIELDS(StatManyReply)

struct Read {
  PathCall at;  // ESTALE when `expect` is another node; EISDIR, ENOENT, EACCES …
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // ≤ kMaxReadBytes; a short stream means end of file
};
template <class Ar, class M>
void Read_fields(Ar& ar, M& m) {
  fields(ar, m.at), ar.num(m.offset), ar.num(m.length);
}
NEARBOX_FIELDS(Read)

struct ReadReply {
  Attr attr;  // of the file after the last byte was read
  bool eof = false;
};
template <class Ar, class M>
void ReadReply_fields(Ar& ar, M& m) {
  fields(ar, m.attr), ar.num(m.eof);
}
NEARBOX_FIELDS(ReadReply)

struct ReadManyItem {
  std::string path;
  NodeId expect{};
};
template <class Ar, class M>
void ReadManyItem_fields(Ar& ar, M& m) {
  ar.bytes(m.path, kMaxPath), fields(ar, m.expect);
}
NEARBOX_FIELDS(ReadManyItem)

// Whole small files, streamed in order. Each answer record: u32 length | ReadManyRecord. A file
// larger than max_file, or one that would not fit max_total, answers EFBIG and no bytes.
struct ReadMany {
  std::uint32_t root = 0;
  std::uint32_t max_file = 0;  // ≤ kMaxWriteBytes
  std::uint64_t max_total = 0;
  std::vector<ReadManyItem> items;
};
template <class Ar, class M>
void ReadMany_fields(Ar& ar, M& m) {
  ar.num(m.root), ar.num(m.max_file), ar.num(m.max_total), ar.list(m.items, kMaxReadMany);
}
NEARBOX_FIELDS(ReadMany)

struct ReadManyRecord {
  std::uint32_t index = 0;
  std::int32_t error = 0;
  Attr attr;
  Bytes data;
};
template <class Ar, class M>
void ReadManyRecord_fields(Ar& ar, M& m) {
  ar.num(m.index), ar.num(m.error), fields(ar, m.attr), ar.bytes(m.data, kMaxWriteBytes);
}
NEARBOX_FIELDS(ReadManyRecord)

struct StatFsReply {
  std::uint64_t blocks = 0, bfree = 0, bavail = 0, files = 0, ffree = 0;
  std::uint32_t bsize = 0, frsize = 0, namelen = 0;
};
template <class Ar, class M>
void StatFsReply_fields(Ar& ar, M& m) {
  ar.num(m.blocks), ar.num(m.bfree), ar.num(m.bavail), ar.num(m.files), ar.num(m.ffree);
  ar.num(m.bsize), ar.num(m.frsize), ar.num(m.namelen);
}
NEARBOX_FIELDS(StatFsReply)

struct XattrCall {
  PathCall at;
  std::string name;  // empty for kListXattr
};
template <class Ar, class M>
void XattrCall_fields(Ar& ar, M& m) {
  fields(ar, m.at), ar.bytes(m.name, kMaxName);
}
NEARBOX_FIELDS(XattrCall)

struct BytesReply {
  Bytes data;
};
template <class Ar, class M>
void BytesReply_fields(Ar& ar, M& m) {
  ar.bytes(m.data, kMaxXattrBytes);
}
NEARBOX_FIELDS(BytesReply)

}  // namespace nearbox::wire
