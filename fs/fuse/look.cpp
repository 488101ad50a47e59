// SPDX-License-Identifier: Apache-2.0
// Session's handlers that only look: names, attributes, listings.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fs/core/calls.h"
#include "fs/fuse/session.h"

namespace nearbox::fs {

using sync::kNoNode;
using sync::Listing;
using sync::NodeIndex;

namespace {
constexpr std::chrono::seconds kStatfsFresh{2};  // older figures are asked for again
constexpr std::chrono::seconds kStatfsDeadline{10};
constexpr std::size_t kMaxDirReply = 256 * 1024;  // one listing reply
constexpr std::uint64_t kFirstCookie = 2;         // offsets 1 and 2 follow "." and ".."
}  // namespace

// ---- lookup

// `proved`: the directory was listed again for this request, so that it may be shown even if it is in
// doubt once more.
Session::Look Session::look(Ino parent, const std::string& name, bool proved, fuse_entry_param& entry,
                            int& error, NodeIndex& dir) {
  dir = inodes_.node(parent);
  if (dir == kNoNode) {
    error = ESTALE;
    return Look::kError;
  }
  const auto decide = [&](const sync::Mirror& mirror, NodeIndex& child) {
    child = mirror.lookup(dir, name);
    const auto listing = mirror.listing(dir);
    if (mirror.doubted(dir) && !proved) return Look::kWant;
    if (child != kNoNode) return Look::kEntry;
    switch (listing) {
      case Listing::kComplete:
      case Listing::kStale:
        return Look::kNegative;
      case Listing::kFailed:
        error = mirror.error(dir) != 0 ? mirror.error(dir) : EIO;
        return Look::kError;
      default:
        return mirror.alive(dir) ? Look::kWant : Look::kNegative;
    }
  };
  // Most names are known to the kernel already, or absent: the shared lock is enough.
  bool add = false;
  NodeIndex child = kNoNode;
  auto result = services_.tree.read([&](const sync::Mirror& mirror) {
    const auto look = decide(mirror, child);
    if (look == Look::kEntry) {
      if (inodes_.ino(child) == 0) {
        add = true;
      } else {
        entry = entry_of(mirror, child, inodes_.add(child).ino);
      }
    }
    return look;
  });
  if (!add) return result;
  return services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    const auto look = decide(mirror, child);
    if (look == Look::kEntry) entry = entry_of(mirror, child, add_ref(mirror, child));
    return look;
  });
}

// True when the request was answered; else its directory is to be listed first.
bool Session::answer_lookup(Request& request, Ino parent, const std::string& name, bool proved) {
  fuse_entry_param entry{};
  int error = 0;
  NodeIndex dir = kNoNode;
  switch (look(parent, name, proved, entry, error, dir)) {
    case Look::kEntry:
      named(entry.ino, parent, name);
      if (!request.entry(entry)) drop_ref(entry.ino);
      return true;
    case Look::kNegative:
      entry.ino = 0;  // absent, and the kernel may remember it
      entry.entry_timeout = kForever;
      request.entry(entry);
      return true;
    case Look::kError:
      request.error(error);
      return true;
    case Look::kWant:
      break;
  }
  return false;
}

void Session::lookup(Request request, Ino parent, std::string name) {
  if (name.size() > wire::kMaxName) {
    request.error(ENAMETOOLONG);
    return;
  }
  if (!answer_lookup(request, parent, name, false)) {
    wait_lookup(std::move(request), parent, name, deadline());
  }
}

void Session::wait_lookup(Request request, Ino parent, const std::string& name, Clock::time_point until) {
  const NodeIndex dir = inodes_.node(parent);
  const auto id = park_until(std::move(request), until, parent);
  if (id == 0) return;
  services_.tree.want(dir, until, [self = shared_from_this(), id, parent, name, until](int error) {
    auto waiting = self->parked_.take(id);
    if (!waiting) return;
    if (error != 0) {
      waiting->error(error);
    } else if (!self->answer_lookup(*waiting, parent, name, true)) {
      self->wait_lookup(std::move(*waiting), parent, name, until);  // listed, and being listed anew
    }
  });
}

bool Session::prove_first(Request& request, NodeIndex node, std::function<void(Request)> then) {
  const auto dir = services_.tree.read([&](const sync::Mirror& mirror) { return mirror.prover(node); });
  return dir != kNoNode && wait_proof(request, dir, std::move(then));
}

// Parks the request until the directory is listed.
bool Session::wait_proof(Request& request, NodeIndex dir, std::function<void(Request)> then) {
  const auto until = deadline();
  const auto id = park_until(std::move(request), until);
  if (id == 0) return true;
  services_.tree.want(dir, until, [self = shared_from_this(), id, then = std::move(then)](int error) {
    auto waiting = self->parked_.take(id);
    if (!waiting) return;
    if (error != 0 && error != ENOENT) {
      waiting->error(error);
    } else {
      then(std::move(*waiting));
    }
  });
  return true;
}

// After an operation: the entry of the node that has `attr`'s identity.
void Session::answer_entry(Request request, Ino parent, const std::string& name, const wire::Attr& attr,
                           const fuse_file_info* info) {
  fuse_entry_param entry{};
  const bool found = services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    const NodeIndex node = mirror.find(wire::identity(attr));
    if (node == kNoNode || !mirror.alive(node)) return false;
    entry = entry_of(mirror, node, add_ref(mirror, node));
    // Of a file that the kernel knew before it would take these whatever it was told meanwhile.
    if (attr.nlink > 1) entry.attr_timeout = 0;
    return true;
  });
  if (!found) {
    request.error(ESTALE);
    return;
  }
  named(entry.ino, parent, name);
  const bool taken = info != nullptr ? request.create(entry, *info) : request.entry(entry);
  if (!taken) drop_ref(entry.ino);
}

void Session::getattr(Request request, Ino ino, bool proved) {
  const NodeIndex node = inodes_.node(ino);
  if (node == kNoNode) {
    request.error(ESTALE);
    return;
  }
  const auto again = [self = shared_from_this(), ino](Request waiting) {
    self->getattr(std::move(waiting), ino, true);
  };
  if (!proved && prove_first(request, node, again)) return;
  const auto st = services_.tree.read([&](const sync::Mirror& mirror) { return show(mirror, node); });
  request.attr(st, kForever);
}

void Session::readlink(Request request, Ino ino, bool proved) {
  const NodeIndex node = inodes_.node(ino);
  if (node == kNoNode) {
    request.error(ESTALE);
    return;
  }
  const auto again = [self = shared_from_this(), ino](Request waiting) {
    self->readlink(std::move(waiting), ino, true);
  };
  if (!proved && prove_first(request, node, again)) return;
  const auto view = services_.tree.read([&](const sync::Mirror& mirror) {
    if (!S_ISLNK(mirror.attr(node).mode)) return LinkView{EINVAL, {}, false};
    return link_view(mirror, node);
  });
  if (view.error != 0) {
    request.error(view.error);
    return;
  }
  if (view.rewritten) {
    base::MutexLock lock(links_mu_);
    rewritten_.insert(ino);
  }
  request.readlink(view.text);
}

// ---- listings

namespace {

// A listing reply under construction.
struct DirBuffer {
  fuse_req_t req;
  std::vector<char> data;
  std::size_t used = 0;

  bool plain(const char* name, const struct stat& st, std::uint64_t next) {
    const auto n =
        fuse_add_direntry(req, data.data() + used, data.size() - used, name, &st, static_cast<off_t>(next));
    return took(n);
  }
  bool plus(const char* name, const fuse_entry_param& entry, std::uint64_t next) {
    const auto n = fuse_add_direntry_plus(req, data.data() + used, data.size() - used, name, &entry,
                                          static_cast<off_t>(next));
    return took(n);
  }
  bool took(std::size_t n) {
    if (n > data.size() - used) return false;
    used += n;
    return true;
  }
};

constexpr std::size_t kPlusOverhead = 152;  // bytes of an entry beside its name, rounded up

}  // namespace

// True when answered; else `dir` is to be listed first.
bool Session::fill_dir(Request& request, Ino ino, std::size_t size, std::uint64_t offset, bool plus,
                       bool proved, NodeIndex& dir) {
  int error = 0;
  dir = inodes_.node(ino);
  if (dir == kNoNode) {
    request.error(ESTALE);
    return true;
  }
  DirBuffer out{request.raw(), std::vector<char>(std::min(size, kMaxDirReply)), 0};
  std::vector<Ino> counted;
  bool want = false;
  services_.tree.write([&](sync::Mirror& mirror, sync::Changes&) {
    const auto listing = mirror.listing(dir);
    if (listing == Listing::kFailed) error = mirror.error(dir) != 0 ? mirror.error(dir) : EIO;
    want = listing == Listing::kUnknown || listing == Listing::kPartial ||
           (listing == Listing::kStale && !proved);
    if (!S_ISDIR(mirror.attr(dir).mode)) error = ENOTDIR;
    if (!mirror.alive(dir)) want = false;
    if (want || error != 0) return;
    for (std::uint64_t dot = offset; dot < kFirstCookie; ++dot) {
      const NodeIndex at = dot == 0 || dir == root_ ? dir : mirror.parent(dir);
      fuse_entry_param entry{};
      entry.attr = show(mirror, at);
      const char* const name = dot == 0 ? "." : "..";
      if (!(plus ? out.plus(name, entry, dot + 1) : out.plain(name, entry.attr, dot + 1))) return;
    }
    const std::uint64_t from = offset <= kFirstCookie ? 0 : offset - kFirstCookie;
    mirror.list(dir, from, [&](std::uint64_t cookie, std::string_view view, NodeIndex child) {
      const std::string name(view);
      if (!plus) return out.plain(name.c_str(), show(mirror, child), cookie + kFirstCookie);
      if (out.data.size() - out.used < kPlusOverhead + name.size() + 8) return false;
      const auto entry = entry_of(mirror, child, add_ref(mirror, child));
      counted.push_back(entry.ino);
      named(entry.ino, ino, view);
      return out.plus(name.c_str(), entry, cookie + kFirstCookie);
    });
  });
  if (error != 0) {
    request.error(error);
    return true;
  }
  if (want) return false;
  if (!request.buffer(out.data.data(), out.used)) {
    std::vector<std::pair<Ino, std::uint64_t>> back;
    for (const Ino counted_ino : counted) back.emplace_back(counted_ino, 1);
    forget(back);
  }
  return true;
}

void Session::readdir(Request request, Ino ino, std::size_t size, std::uint64_t offset, bool plus) {
  NodeIndex dir = kNoNode;
  if (fill_dir(request, ino, size, offset, plus, false, dir)) return;
  wait_listing(std::move(request), ino, size, offset, plus, deadline());
}

void Session::wait_listing(Request request, Ino ino, std::size_t size, std::uint64_t offset, bool plus,
                           Clock::time_point until) {
  const NodeIndex dir = inodes_.node(ino);
  const auto id = park_until(std::move(request), until, ino);
  if (id == 0) return;
  services_.tree.want(dir, until, [=, self = shared_from_this()](int error) {
    auto waiting = self->parked_.take(id);
    if (!waiting) return;
    NodeIndex node = kNoNode;
    if (error != 0) {
      waiting->error(error);
    } else if (!self->fill_dir(*waiting, ino, size, offset, plus, true, node)) {
      self->wait_listing(std::move(*waiting), ino, size, offset, plus, until);  // being listed anew
    }
  });
}

// ---- statfs

void Session::statfs(Request request) {
  bool known = false;
  bool fresh = false;
  struct statvfs st {};
  {
    base::MutexLock lock(statfs_mu_);
    known = statfs_known_;
    st = statfs_;
    fresh = known && Clock::now() - statfs_at_ < kStatfsFresh;
  }
  if (known) {
    request.statfs(st);
  } else if (const auto id = park(std::move(request)); id != 0) {
    base::MutexLock lock(statfs_mu_);
    statfs_waiting_.push_back(id);
  }
  if (!fresh) refresh_statfs();
}

// Asks the agent in the background; those who wait for the first answer get it.
void Session::refresh_statfs() {
  {
    base::MutexLock lock(statfs_mu_);
    if (std::exchange(statfs_asked_, true)) return;
  }
  wire::PathCall message;
  message.root = services_.tree.root();
  message.path = services_.tree.read([&](const sync::Mirror& m) { return m.path(root_).value_or(""); });
  ask<wire::StatFsReply>(services_.link, wire::Method::kStatFs, message, Clock::now() + kStatfsDeadline,
                         [weak = weak_from_this()](int error, wire::StatFsReply&& reply) {
                           const auto self = weak.lock();
                           if (!self) return;
                           std::vector<ParkedTable::Id> waiting;
                           struct statvfs st {};
                           {
                             base::MutexLock lock(self->statfs_mu_);
                             self->statfs_asked_ = false;
                             waiting.swap(self->statfs_waiting_);
                             if (error == 0) {
                               self->statfs_known_ = true;
                               self->statfs_at_ = Clock::now();
                               auto& to = self->statfs_;
                               to.f_blocks = reply.blocks, to.f_bfree = reply.bfree,
                               to.f_bavail = reply.bavail;
                               to.f_files = reply.files, to.f_ffree = to.f_favail = reply.ffree;
                               to.f_bsize = reply.bsize, to.f_frsize = reply.frsize;
                               to.f_namemax = wire::kMaxName;
                             }
                             st = self->statfs_;
                           }
                           for (const auto id : waiting) {
                             auto request = self->parked_.take(id);
                             if (request) error != 0 ? request->error(error) : request->statfs(st);
                           }
                         });
}

}  // namespace nearbox::fs
