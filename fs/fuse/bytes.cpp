// SPDX-License-Identifier: Apache-2.0
// Session's handlers for content and attributes of one inode.
#include <algorithm>
#include <cerrno>
#include <fcntl.h>

#include "fs/core/tree_hooks.h"
#include "fs/fuse/session.h"

namespace nearbox::fs {

using sync::kNoNode;
using sync::NodeIndex;

namespace {

constexpr std::uint64_t kMaxCopy = 64ull * 1024 * 1024;  // one copy_file_range; the caller goes on from there

std::int64_t to_ns(const timespec& time) { return time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec; }

bool is(const wire::Attr& attr, const wire::NodeId& id) { return wire::same_node(wire::identity(attr), id); }

}  // namespace

// The node of an inode, its attributes, and how the agent finds it.
std::optional<wire::PathCall> Session::find(Ino ino, NodeIndex& node, wire::Attr& attr) const {
  node = inodes_.node(ino);
  if (node == kNoNode) return std::nullopt;
  attr = services_.tree.read([&](const sync::Mirror& mirror) { return mirror.attr(node); });
  return locate(services_.tree, services_.log.orphans(), node, wire::identity(attr));
}

// Fills in what every operation on one node carries.
bool Session::fill_op(wire::Op& op, Ino ino, NodeIndex& node, wire::Attr& attr) const {
  auto call = find(ino, node, attr);
  if (!call) return false;
  op.root = call->root;
  op.path = std::move(call->path);
  op.orphan = call->orphan;
  op.expect = call->expect;
  op.keys = {{kTreeKey, false}, {node_key(call->expect), true}};
  return true;
}

// A task of one operation on one inode, whose kind the caller fills in. False: answered, the node is gone.
bool Session::on_node(Request& request, Ino ino, NodeIndex& node, Task& task) {
  wire::Op op;
  wire::Attr attr;
  if (!fill_op(op, ino, node, attr)) {
    request.error(ESTALE);
    return false;
  }
  task.ops.push_back(std::move(op));
  task.nodes = {node};
  task.busy1 = ino;
  task.locate = by_node(node, wire::identity(attr));
  return true;
}

// ---- reading

void Session::read(Request request, Ino ino, std::size_t size, std::uint64_t offset, bool proved) {
  const NodeIndex node = inodes_.node(ino);
  if (node == kNoNode) {
    request.error(ESTALE);
    return;
  }
  const auto attr = services_.tree.read([&](const sync::Mirror& mirror) { return mirror.attr(node); });
  if (S_ISDIR(attr.mode)) {
    request.error(EISDIR);
    return;
  }
  const auto again = [self = shared_from_this(), ino, size, offset](Request waiting) {
    self->read(std::move(waiting), ino, size, offset, true);
  };
  if (!proved && prove_first(request, node, again)) return;
  auto* const readers = services_.readers;
  const pid_t reader = request.pid();
  if (readers != nullptr && readers->limits() && !services_.cache.has(attr, offset, size)) {
    if (const int refused = readers->admit(Readers::program(reader)); refused != 0) {
      request.error(refused);
      return;
    }
  }
  const auto id = park(std::move(request), ino);
  if (id == 0) return;
  const bool begins = offset == 0 && S_ISREG(attr.mode) && services_.prefetch != nullptr;
  services_.cache.read(node, attr, offset, size, [=, self = shared_from_this()](BlockCache::Data&& data) {
    // While it waits for the answer it is there to be asked for its name.
    if (readers != nullptr && data.fetched != 0) readers->fetched(Readers::program(reader), data.fetched);
    auto waiting = self->parked_.take(id);
    if (!waiting) return;
    if (data.error != 0) {
      waiting->error(data.error);
      return;
    }
    std::vector<iovec> parts;
    parts.reserve(data.pieces.size());
    for (const auto& piece : data.pieces) {
      // writev(2) only reads what iov_base shows
      auto* const at = const_cast<std::byte*>(piece.block->data() + piece.offset);
      parts.push_back({at, piece.length});
    }
    self->bytes_read_.fetch_add(data.size, std::memory_order_relaxed);
    parts.empty() ? waiting->buffer(nullptr, 0) : waiting->pieces(parts);
  });
  if (begins) services_.prefetch->on_read(node, attr);
}

// ---- writing

// Brings the result of an own change of content into the mirror, and whether the node was another than the
// mirror's before it. False: the node is no longer the one that was meant. Under the tree's lock.
bool Session::take_content(NodeIndex node, const wire::NodeId& id, const wire::OpDone& done, Seen& seen,
                           sync::Mirror& mirror, sync::Changes& changes) {
  seen.before = mirror.attr(node);
  if (!is(done.attr, id) || !is(seen.before, id)) return false;
  // What it was before is not told of an operation that was sent again.
  seen.foreign = !is(done.before, id) || changed(seen.before, done.before);
  seen.after = done.attr;
  mirror.set_attr(node, done.attr, changes);
  return true;
}

// What was cached of a file after an own change of `length` bytes at `offset`.
void Session::wrote(Ino ino, const Seen& seen, std::uint64_t offset, std::uint64_t length) {
  if (seen.after.ino == 0) return;
  services_.cache.wrote(seen.before, seen.after, seen.foreign ? 0 : offset,
                        seen.foreign ? kWholeFile : length);
  if (seen.foreign) notifier_->data(ino);  // left aside until the request is answered
}

void Session::write(Request request, Ino ino, wire::Bytes data, std::uint64_t offset, bool append) {
  if (data.size() > wire::kMaxWriteBytes || offset > INT64_MAX - data.size()) {
    request.error(EFBIG);
    return;
  }
  NodeIndex node = kNoNode;
  Task task;
  if (!on_node(request, ino, node, task)) return;
  wire::Op& op = task.ops.front();
  op.kind = append ? wire::OpKind::kAppend : wire::OpKind::kWrite;
  op.offset = offset;
  const std::size_t length = data.size();
  op.data = std::move(data);
  const wire::NodeId id = op.expect;
  auto seen = std::make_shared<Seen>();
  task.apply = [=](std::size_t, const wire::OpDone& done, sync::Mirror& mirror, sync::Changes& changes) {
    if (!take_content(node, id, done, *seen, mirror, changes)) return;
    const std::uint64_t at = append ? done.offset : offset;
    const auto end = std::max(seen->before.size, at + done.written);
    // Not what this kernel believes: somebody else wrote too, or the append landed elsewhere.
    seen->foreign = seen->foreign || at != offset || done.attr.size != end;
  };
  auto self = shared_from_this();
  task.after = [=](const wire::OpDone& done) {
    if (seen->after.ino != 0) self->bytes_written_.fetch_add(done.written, std::memory_order_relaxed);
    self->wrote(ino, *seen, append ? done.offset : offset, done.written);
  };
  task.answer = [length](Request waiting, const wire::OpDone& done) {
    waiting.write(static_cast<std::size_t>(std::min<std::uint64_t>(done.written, length)));
  };
  run(std::move(request), std::move(task));
}

void Session::fsync(Request request, Ino ino, bool data_only) {
  NodeIndex node = kNoNode;
  Task task;
  if (!on_node(request, ino, node, task)) return;
  task.ops.front().kind = wire::OpKind::kFsync;
  task.ops.front().flags = data_only ? 1 : 0;
  task.answer = [](Request waiting, const wire::OpDone&) { waiting.error(0); };
  run(std::move(request), std::move(task));
}

void Session::fallocate(Request request, Ino ino, int mode, std::uint64_t offset, std::uint64_t length) {
  NodeIndex node = kNoNode;
  Task task;
  if (!on_node(request, ino, node, task)) return;
  wire::Op& op = task.ops.front();
  op.kind = wire::OpKind::kFallocate;
  op.flags = static_cast<std::uint32_t>(mode);
  op.offset = offset;
  op.size = length;
  const wire::NodeId id = op.expect;
  auto seen = std::make_shared<Seen>();
  task.apply = [=](std::size_t, const wire::OpDone& done, sync::Mirror& mirror, sync::Changes& changes) {
    (void)take_content(node, id, done, *seen, mirror, changes);
  };
  auto self = shared_from_this();
  // Holes and zeroes: the kernel drops its own pages; ours go with the version.
  task.after = [=](const wire::OpDone&) { self->wrote(ino, *seen, 0, kWholeFile); };
  task.answer = [](Request waiting, const wire::OpDone&) { waiting.error(0); };
  run(std::move(request), std::move(task));
}

void Session::copy_range(Request request, Ino from, std::uint64_t from_offset, Ino to,
                         std::uint64_t to_offset, std::uint64_t length) {
  wire::Op op;
  Task task;
  NodeIndex source = kNoNode;
  NodeIndex node = kNoNode;
  wire::Attr source_attr;
  wire::Attr attr;
  const auto target = find(to, node, attr);
  // The message has room for one kept file: unlinked ones are copied by the kernel (EOPNOTSUPP).
  if (!target || !fill_op(op, from, source, source_attr) || target->orphan != 0 || op.orphan != 0) {
    request.error(target ? EOPNOTSUPP : ESTALE);
    return;
  }
  op.kind = wire::OpKind::kCopyRange;
  op.path2 = target->path;
  op.expect2 = target->expect;
  op.offset = from_offset;
  op.rdev = to_offset;
  op.size = std::min(length, kMaxCopy);
  op.keys = {{kTreeKey, false}, {node_key(op.expect), false}};
  if (from == to) op.keys.pop_back();
  op.keys.push_back({node_key(target->expect), true});
  const wire::NodeId id = target->expect;
  task.ops.push_back(std::move(op));
  task.nodes = {source, node};
  task.busy1 = to;
  task.busy2 = from == to ? 0 : from;
  task.locate = [first = by_node(source, wire::identity(source_attr)),
                 second = by_node(node, wire::identity(attr))](wire::Op& again) {
    wire::Op other;
    if (!first(again) || !second(other) || again.orphan != 0 || other.orphan != 0) return false;
    again.path2 = other.path;
    return true;
  };
  auto seen = std::make_shared<Seen>();
  task.apply = [=](std::size_t, const wire::OpDone& done, sync::Mirror& mirror, sync::Changes& changes) {
    (void)take_content(node, id, done, *seen, mirror, changes);
  };
  auto self = shared_from_this();
  task.after = [=](const wire::OpDone& done) { self->wrote(to, *seen, to_offset, done.written); };
  task.answer = [](Request waiting, const wire::OpDone& done) {
    waiting.write(static_cast<std::size_t>(done.written));
  };
  run(std::move(request), std::move(task));
}

// ---- attributes

void Session::setattr(Request request, Ino ino, const struct stat& st, int to_set) {
  wire::Op op;
  NodeIndex node = kNoNode;
  wire::Attr attr;
  if (options_.ownership == Ownership::kMap) {
    const bool own = ((to_set & FUSE_SET_ATTR_UID) == 0 || st.st_uid == options_.uid) &&
                     ((to_set & FUSE_SET_ATTR_GID) == 0 || st.st_gid == options_.gid);
    if (!own) {
      request.error(EPERM);
      return;
    }
    to_set &= ~(FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID);
  }
  if (!fill_op(op, ino, node, attr)) {
    request.error(ESTALE);
    return;
  }
  Task task;
  if ((to_set & FUSE_SET_ATTR_SIZE) != 0) {
    wire::Op cut = op;
    cut.kind = wire::OpKind::kTruncate;
    cut.size = static_cast<std::uint64_t>(st.st_size);
    task.ops.push_back(std::move(cut));
  }
  op.kind = wire::OpKind::kSetAttr;
  const auto set = [&](int bit, std::uint32_t mask) {
    if ((to_set & bit) != 0) op.set_mask |= mask;
  };
  set(FUSE_SET_ATTR_MODE, wire::kSetMode);
  set(FUSE_SET_ATTR_UID, wire::kSetUid);
  set(FUSE_SET_ATTR_GID, wire::kSetGid);
  set(FUSE_SET_ATTR_MTIME_NOW, wire::kSetMtimeNow);
  set(FUSE_SET_ATTR_ATIME_NOW, wire::kSetAtimeNow);
  if ((op.set_mask & wire::kSetMtimeNow) == 0) set(FUSE_SET_ATTR_MTIME, wire::kSetMtime);
  if ((op.set_mask & wire::kSetAtimeNow) == 0) set(FUSE_SET_ATTR_ATIME, wire::kSetAtime);
  op.mode = st.st_mode & 07777;
  op.uid = st.st_uid;
  op.gid = st.st_gid;
  op.mtime_ns = to_ns(st.st_mtim);
  op.atime_ns = to_ns(st.st_atim);
  const wire::NodeId id = op.expect;
  if (op.set_mask != 0) task.ops.push_back(std::move(op));
  if (task.ops.empty()) return getattr(std::move(request), ino);
  task.nodes = {node};
  task.busy1 = ino;
  task.locate = by_node(node, wire::identity(attr));
  task.apply = [=, this](std::size_t, const wire::OpDone& done, sync::Mirror& mirror,
                         sync::Changes& changes) {
    const auto before = mirror.attr(node);
    if (!is(done.attr, id) || !is(before, id)) return;
    note_foreign(node, before, done.before);
    mirror.set_attr(node, done.attr, changes);
    // What refused to be listed may not any more: asked for again at the next look.
    if (mirror.listing(node) == sync::Listing::kFailed) mirror.set_listing(node, sync::Listing::kUnknown);
  };
  auto self = shared_from_this();
  // The kernel takes what this answer says whatever it was told meanwhile (linux v6.12 fs/fuse/dir.c,
  // fuse_do_setattr(): no attr_version), so it is not to believe it for long.
  task.answer = [self, node](Request waiting, const wire::OpDone&) {
    waiting.attr(self->services_.tree.read([&](const sync::Mirror& m) { return self->show(m, node); }), 0);
  };
  run(std::move(request), std::move(task));
}

}  // namespace nearbox::fs
