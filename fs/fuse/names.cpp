// SPDX-License-Identifier: Apache-2.0
// Session's handlers that change names.
#include <cerrno>
#include <cstdio>
#include <fcntl.h>

#include "client/wire/paths.h"
#include "fs/core/tree_hooks.h"
#include "fs/fuse/session.h"

namespace nearbox::fs {

using sync::kNoNode;
using sync::NodeIndex;

namespace {

constexpr unsigned kRenameNoReplace = 1, kRenameExchange = 2;  // linux/fs.h

bool known(const wire::Attr& attr) { return attr.ino != 0; }

}  // namespace

std::uint32_t Session::owner_uid(fuse_req_t req) const {
  return options_.ownership == Ownership::kMap ? wire::kOwnerUser : fuse_req_ctx(req)->uid;
}
std::uint32_t Session::owner_gid(fuse_req_t req) const {
  return options_.ownership == Ownership::kMap ? wire::kOwnerUser : fuse_req_ctx(req)->gid;
}

// Where a name lies and what it leads to; an errno when the directory is gone or the name impossible.
int Session::place(Ino parent, const std::string& name, Place& place) const {
  if (name.size() > wire::kMaxName) return ENAMETOOLONG;
  if (!wire::valid_name(name)) return EINVAL;
  place.dir = inodes_.node(parent);
  if (place.dir == kNoNode) return ESTALE;
  return services_.tree.read([&](const sync::Mirror& mirror) {
    const auto path = mirror.alive(place.dir) ? mirror.path(place.dir) : std::nullopt;
    if (!path) return ENOENT;
    const auto attr = mirror.attr(place.dir);
    place.id = wire::identity(attr);
    place.path = path->empty() ? name : *path + "/" + name;
    if (place.path.size() >= wire::kMaxPath) return ENAMETOOLONG;
    place.child = mirror.lookup(place.dir, name);
    if (place.child != kNoNode) place.attr = mirror.attr(place.child);
    return 0;
  });
}

// As prove_first(), of a name in a directory. The kernel may know one that is being listed here just now.
bool Session::prove_name_first(Request& request, Ino parent, const std::string& name,
                               std::function<void(Request)> then) {
  const auto dir = inodes_.node(parent);
  const bool wait = services_.tree.read([&](const sync::Mirror& mirror) {
    const auto listing = mirror.listing(dir);
    if (mirror.doubted(dir)) return true;
    const bool whole = listing == sync::Listing::kComplete || listing == sync::Listing::kFailed;
    return !whole && mirror.alive(dir) && mirror.lookup(dir, name) == kNoNode;
  });
  return wait && wait_proof(request, dir, std::move(then));
}

void Session::set_parent(sync::Mirror& mirror, NodeIndex dir, const wire::Attr& attr,
                         sync::Changes& changes) {
  const auto have = mirror.attr(dir);
  if (known(attr) && wire::same_node(have, attr)) mirror.set_attr(dir, attr, changes);
}

// ---- making

// Sends an operation that makes `name`, and answers with the new entry.
void Session::make(Request request, wire::Op op, Ino parent, const std::string& name,
                   std::optional<fuse_file_info> info) {
  Place at;
  if (const int error = place(parent, name, at); error != 0) {
    request.error(error);
    return;
  }
  op.root = services_.tree.root();
  op.path = at.path;
  op.expect = at.id;
  op.uid = owner_uid(request.raw());
  op.gid = owner_gid(request.raw());
  op.keys = {{kTreeKey, false}, {node_key(at.id), false}, {name_key(at.id, name), true}};
  const auto kind = op.kind;
  const std::string target = op.target;
  Task task;
  task.ops.push_back(std::move(op));
  task.dirs = {at.dir};
  task.entries = {{at.dir, at.id, name}};
  task.names = {{parent, name}};
  task.busy1 = parent;
  task.locate = by_name(at.dir, name);
  const auto unknown = services_.tree.unknown_told();
  auto unsure = std::make_shared<NodeIndex>(kNoNode);
  task.apply = [=, this](std::size_t, const wire::OpDone& done, sync::Mirror& mirror,
                         sync::Changes& changes) {
    if (!known(done.attr) || !mirror.alive(at.dir)) return;
    // A file that was there already, perhaps known by another name; or one that is gone, which nobody has
    // told yet, and whose number was given again.
    const auto there = mirror.find(wire::identity(done.attr));
    if (there != kNoNode)
      note_foreign(there, mirror.attr(there), done.before.ino != 0 ? done.before : done.attr);
    if (there != kNoNode && kind == wire::OpKind::kSymlink && mirror.target(there) != target) {
      if (const Ino ino = inodes_.ino(there); ino != 0) notifier_->data(ino);
    }
    const auto child = mirror.link(at.dir, name, done.attr, target, changes);
    if (child != kNoNode && kind == wire::OpKind::kMkdir) {
      // Somebody may have put things into it already, and the events fell on deaf ears, or were taken.
      if (services_.tree.unknown_told() != unknown || child == there) *unsure = child;
      if (child == there) mirror.begin_listing(child, changes);
      if (mirror.listing(child) == sync::Listing::kUnknown)
        mirror.set_listing(child, sync::Listing::kComplete);
    }
    set_parent(mirror, at.dir, done.parent, changes);
  };
  auto self = shared_from_this();
  task.after = [self, unsure](const wire::OpDone&) {
    if (*unsure != kNoNode) self->services_.tree.look_again(*unsure);
  };
  task.answer = [self, parent, name, info](Request waiting, const wire::OpDone& done) {
    self->answer_entry(std::move(waiting), parent, name, done.attr, info ? &*info : nullptr);
  };
  run(std::move(request), std::move(task));
}

void Session::create(Request request, Ino parent, std::string name, mode_t mode, const fuse_file_info* info) {
  wire::Op op;
  op.kind = wire::OpKind::kCreate;
  op.mode = mode;
  op.flags = static_cast<std::uint32_t>(info->flags & (O_EXCL | O_TRUNC));
  make(std::move(request), std::move(op), parent, name, *info);
}

void Session::mknod(Request request, Ino parent, std::string name, mode_t mode, dev_t rdev) {
  wire::Op op;
  op.kind = S_ISREG(mode) ? wire::OpKind::kCreate : wire::OpKind::kMknod;
  op.mode = mode;
  op.flags = O_EXCL;
  op.rdev = rdev;
  make(std::move(request), std::move(op), parent, name, std::nullopt);
}

void Session::mkdir(Request request, Ino parent, std::string name, mode_t mode) {
  wire::Op op;
  op.kind = wire::OpKind::kMkdir;
  op.mode = mode;
  make(std::move(request), std::move(op), parent, name, std::nullopt);
}

void Session::symlink(Request request, Ino parent, std::string name, std::string target) {
  if (target.empty() || target.size() >= wire::kMaxPath) {
    request.error(target.empty() ? ENOENT : ENAMETOOLONG);
    return;
  }
  wire::Op op;
  op.kind = wire::OpKind::kSymlink;
  op.mode = S_IFLNK | 0777;
  op.target = std::move(target);
  make(std::move(request), std::move(op), parent, name, std::nullopt);
}

void Session::link(Request request, Ino ino, Ino parent, std::string name) {
  Place at;
  wire::Op op;
  NodeIndex node = kNoNode;
  wire::Attr attr;
  if (const int error = place(parent, name, at); error != 0) {
    request.error(error);
    return;
  }
  if (!fill_op(op, ino, node, attr) || op.orphan != 0) {
    request.error(ENOENT);  // a file without name cannot get one again
    return;
  }
  op.kind = wire::OpKind::kLink;
  op.path2 = at.path;
  op.expect2 = at.id;
  op.keys.push_back({node_key(at.id), false});
  op.keys.push_back({name_key(at.id, name), true});
  const std::string target = services_.tree.read([&](const sync::Mirror& m) { return m.target(node); });
  Task task;
  task.ops.push_back(std::move(op));
  task.dirs = {at.dir};
  task.entries = {{at.dir, at.id, name}};
  task.nodes = {node};
  task.names = {{parent, name}};
  task.busy1 = parent;
  task.locate = [first = by_node(node, wire::identity(attr)),
                 second = by_name(at.dir, name)](wire::Op& again) {
    wire::Op other;
    if (!first(again) || !second(other) || again.orphan != 0) return false;
    again.path2 = other.path;
    return true;
  };
  task.apply = [=, this](std::size_t, const wire::OpDone& done, sync::Mirror& mirror,
                         sync::Changes& changes) {
    if (!known(done.attr) || !mirror.alive(at.dir)) return;
    note_foreign(node, mirror.attr(node), done.attr);
    mirror.link(at.dir, name, done.attr, target, changes);
    set_parent(mirror, at.dir, done.parent, changes);
  };
  auto self = shared_from_this();
  if (S_ISLNK(attr.mode)) task.after = [self](const wire::OpDone&) { self->renamed_directory(); };
  task.answer = [self, parent, name](Request waiting, const wire::OpDone& done) {
    self->answer_entry(std::move(waiting), parent, name, done.attr, nullptr);
  };
  run(std::move(request), std::move(task));
}

// ---- removing

void Session::remove(Request request, Ino parent, std::string name, bool directory, bool proved) {
  const auto again = [=, self = shared_from_this()](Request waiting) {
    self->remove(std::move(waiting), parent, name, directory, true);
  };
  if (!proved && prove_name_first(request, parent, name, again)) return;
  Place at;
  int error = place(parent, name, at);
  if (error == 0 && at.child == kNoNode) error = ENOENT;
  if (error != 0) {
    request.error(error);
    return;
  }
  wire::Op op;
  op.kind = directory ? wire::OpKind::kRmdir : wire::OpKind::kUnlink;
  op.root = services_.tree.root();
  op.path = at.path;
  op.expect = wire::identity(at.attr);
  const bool keep = !directory && S_ISREG(at.attr.mode) && at.attr.nlink <= 1;
  if (keep) op.op_flags |= wire::kOpKeep;  // it may be open here: given back when the kernel forgets it
  op.keys = {{kTreeKey, false},
             {node_key(at.id), false},
             {name_key(at.id, name), true},
             {node_key(op.expect), true}};
  Task task;
  task.ops.push_back(std::move(op));
  task.dirs = {at.dir};
  task.entries = {{at.dir, at.id, name}};
  task.nodes = {at.child};
  task.names = {{parent, name}};
  task.leads = {kNoNode};
  task.busy1 = parent;
  task.busy2 = inodes_.ino(at.child);
  task.locate = by_name(at.dir, name);
  auto self = shared_from_this();
  auto give_back = std::make_shared<bool>(false);
  task.apply = [=](std::size_t, const wire::OpDone& done, sync::Mirror& mirror, sync::Changes& changes) {
    if (keep) *give_back = !self->services_.log.orphans().keep(at.child, done.op_id);
    if (mirror.lookup(at.dir, name) == at.child) mirror.unlink(at.dir, name, changes);
    auto left = mirror.attr(at.child);
    if (wire::same_node(done.attr, left)) {
      self->note_foreign(at.child, left, done.attr);
      left = done.attr;
    } else if (!mirror.alive(at.child)) {  // else its number was given again, or it has names we learnt of
      left.nlink = 0;
    }
    mirror.set_attr(at.child, left, changes);
    set_parent(mirror, at.dir, done.parent, changes);
  };
  task.after = [=](const wire::OpDone& done) {
    if (*give_back) self->services_.log.forget_orphan(done.op_id);
  };
  task.answer = [](Request waiting, const wire::OpDone&) { waiting.error(0); };
  run(std::move(request), std::move(task));
}

// Brings a rename into the mirror. What the watcher saw of either name beside it may have been told before.
void Session::renamed(sync::Mirror& mirror, const Place& from, const std::string& name, const Place& to,
                      const std::string& name2, bool exchange, sync::Changes& changes) {
  const auto at = mirror.lookup(from.dir, name);
  const auto at2 = mirror.lookup(to.dir, name2);
  const bool untold = at == from.child && at2 != from.child && (!exchange || at2 == to.child);
  if (untold && mirror.alive(to.dir)) return mirror.rename(from.dir, name, to.dir, name2, exchange, changes);
  const auto lead = [&](const Place& place, const std::string& as, NodeIndex node) {
    if (!mirror.alive(place.dir) || mirror.lookup(place.dir, as) == node) return;
    mirror.link(place.dir, as, mirror.attr(node), mirror.target(node), changes);
  };
  lead(to, name2, from.child);
  if (exchange) {
    lead(from, name, to.child);
  } else if (mirror.lookup(from.dir, name) == from.child) {
    mirror.unlink(from.dir, name, changes);
  }
}

void Session::rename(Request request, Ino parent, std::string name, Ino parent2, std::string name2,
                     unsigned flags, int proved) {
  const auto proven = [=, self = shared_from_this()](Request waiting) {
    self->rename(std::move(waiting), parent, name, parent2, name2, flags, proved + 1);
  };
  if (proved < 1 && prove_name_first(request, parent, name, proven)) return;
  if (proved < 2 && prove_name_first(request, parent2, name2, proven)) return;
  Place from;
  Place to;
  int error = (flags & ~(kRenameNoReplace | kRenameExchange)) != 0 ? EINVAL : 0;
  if (error == 0) error = place(parent, name, from);
  if (error == 0) error = place(parent2, name2, to);
  if (error == 0 && from.child == kNoNode) error = ENOENT;
  if (error != 0) {
    request.error(error);
    return;
  }
  const bool exchange = (flags & kRenameExchange) != 0;
  const bool replaces = to.child != kNoNode && to.child != from.child && !exchange;
  const bool directory = S_ISDIR(from.attr.mode) || (exchange && S_ISDIR(to.attr.mode));
  wire::Op op;
  op.kind = wire::OpKind::kRename;
  op.root = services_.tree.root();
  op.path = from.path;
  op.path2 = to.path;
  op.expect = wire::identity(from.attr);
  op.expect2 = to.id;
  op.flags = flags;
  const bool keep = replaces && S_ISREG(to.attr.mode) && to.attr.nlink <= 1;
  if (keep) op.op_flags |= wire::kOpKeep;
  // Paths of all below a directory change with it: nothing that goes by path may run beside that.
  op.keys = {{kTreeKey, directory},
             {name_key(from.id, name), true},
             {name_key(to.id, name2), true},
             {node_key(op.expect), true}};
  if (to.child != kNoNode && to.child != from.child)
    op.keys.push_back({node_key(wire::identity(to.attr)), true});
  Task task;
  task.ops.push_back(std::move(op));
  task.dirs = {from.dir};
  if (to.dir != from.dir) task.dirs.push_back(to.dir);
  if (!directory) task.entries = {{from.dir, from.id, name}, {to.dir, to.id, name2}};
  task.nodes = {from.child};
  if (to.child != kNoNode) task.nodes.push_back(to.child);
  task.names = {{parent, name}, {parent2, name2}};
  task.leads = {exchange ? to.child : kNoNode, from.child};
  task.busy1 = parent;
  task.busy2 = parent2 == parent ? 0 : parent2;
  task.renames_directory = directory;
  task.locate = [first = by_name(from.dir, name), second = by_name(to.dir, name2)](wire::Op& again) {
    wire::Op other;
    if (!first(again) || !second(other)) return false;
    again.path2 = other.path;
    return true;
  };
  auto self = shared_from_this();
  auto give_back = std::make_shared<bool>(false);
  auto has_other_names = std::make_shared<bool>(false);  // what was replaced
  task.apply = [=](std::size_t, const wire::OpDone& done, sync::Mirror& mirror, sync::Changes& changes) {
    if (keep) *give_back = !self->services_.log.orphans().keep(to.child, done.op_id);
    const bool same_file = to.child == from.child;  // two names of one file: nothing happens
    if (!same_file) renamed(mirror, from, name, to, name2, exchange, changes);
    if (replaces) {
      auto left = mirror.attr(to.child);
      const bool gone = !mirror.alive(to.child);
      if (gone) left.nlink = 0;
      if (!gone && left.nlink > 0) --left.nlink;
      *has_other_names = !gone;
      mirror.set_attr(to.child, left, changes);
    }
    const auto have = mirror.attr(from.child);
    if (wire::same_node(done.attr, have)) {
      self->note_foreign(from.child, have, done.attr);
      mirror.set_attr(from.child, done.attr, changes);
    }
    set_parent(mirror, from.dir, done.parent, changes);
    set_parent(mirror, to.dir, to.dir == from.dir ? done.parent : done.parent2, changes);
  };
  task.after = [=](const wire::OpDone& done) {
    if (*give_back) self->services_.log.forget_orphan(done.op_id);
    self->named(self->inodes_.ino(from.child), parent2, name2);  // the kernel moves its entries by itself
    if (exchange) self->named(self->inodes_.ino(to.child), parent, name);
    self->renamed_directory();
    // Its link count is a guess: the answer speaks of the other file.
    if (*has_other_names) self->services_.tree.look_again(to.child);
  };
  task.answer = [](Request waiting, const wire::OpDone&) { waiting.error(0); };
  run(std::move(request), std::move(task));
}

}  // namespace nearbox::fs
