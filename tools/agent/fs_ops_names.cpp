// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstdlib>
#include <fcntl.h>
#include <optional>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/agent/born_as.h"
#include "tools/agent/fs_ops_detail.h"

// Operations that add, remove or move names.
namespace nearbox::agent::detail {
namespace {

void fill_parent(int dir, wire::Attr& out) {
  if (auto st = stat_fd(dir)) out = make_attr(*st);
}

mode_t type_of(const wire::Op& op) {
  switch (op.kind) {
    case wire::OpKind::kCreate:
      return S_IFREG;
    case wire::OpKind::kMkdir:
      return S_IFDIR;
    case wire::OpKind::kSymlink:
      return S_IFLNK;
    default:
      return op.mode & S_IFMT;
  }
}

std::string link_target(const Place& place) {
  std::array<char, wire::kMaxPath> buffer{};
  const ssize_t n = ::readlinkat(place.dir.get(), place.name.c_str(), buffer.data(), buffer.size());
  return n < 0 ? std::string{} : std::string(buffer.data(), static_cast<std::size_t>(n));
}

// A creation that met its name taken: whether what is there may stand for what was asked.
bool stands_for(const wire::Op& op, const Place& place, const Stat& st) {
  const mode_t type = type_of(op);
  if ((st.st_mode & S_IFMT) != type) return false;
  if (op.kind == wire::OpKind::kSymlink) return retried(op) && link_target(place) == op.target;
  if (op.kind == wire::OpKind::kMknod) return retried(op) && (S_ISFIFO(type) || st.st_rdev == op.rdev);
  const bool shared_open = op.kind == wire::OpKind::kCreate && (op.flags & O_EXCL) == 0;
  return shared_open || retried(op);
}

// A file that was there already, opened with O_TRUNC.
Result<void> empty_file(const wire::Op& op, const Place& place, Stat& st) {
  auto file = open_for_write(place, node_of(st), O_WRONLY);
  if (!file) return std::move(file).error();
  if (::ftruncate(file->fd.get(), 0) != 0) return base::last_errno("truncate");
  (void)set_mtime(file->fd.get(), op.mtime_ns);
  auto after = stat_fd(file->fd.get());
  if (!after) return std::move(after).error();
  st = *after;
  return {};
}

// Owner and mode that the new node is to have.
struct Dress {
  Owner owner;
  mode_t mode;
};

Dress dress_of(const OpContext& context, const wire::Op& op, const Stat& parent) {
  Dress dress{owner_of(context, op), static_cast<mode_t>(op.mode & 07777)};
  if ((parent.st_mode & S_ISGID) != 0) {
    dress.owner.gid = parent.st_gid;
    if (op.kind == wire::OpKind::kMkdir) dress.mode |= S_ISGID;
  }
  return dress;
}

// The mode of what is root's for a moment: nobody else may open it before it is given away.
mode_t half_made_mode(bool directory) { return directory ? 0700 : 0600; }

// Makes it; `fd` is open for writing (a file) or O_PATH.
int make_node(const OpContext& context, const wire::Op& op, const Place& place, const Dress& dress,
              base::UniqueFd& fd) {
  const int dir = place.dir.get();
  const char* name = place.name.c_str();
  const BornAs born(dress.owner.uid, dress.owner.gid);
  const bool final = born.holds() || !context.who.root();
  const mode_t mode = final ? dress.mode : half_made_mode(op.kind == wire::OpKind::kMkdir);
  int failed = 0;
  switch (op.kind) {
    case wire::OpKind::kCreate:
      fd.reset(::openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, mode));
      return fd ? 0 : errno;
    case wire::OpKind::kMkdir:
      failed = ::mkdirat(dir, name, mode);
      break;
    case wire::OpKind::kSymlink:
      failed = ::symlinkat(op.target.c_str(), dir, name);
      break;
    default:
      failed = ::mknodat(dir, name, (op.mode & S_IFMT) | mode, op.rdev);
      break;
  }
  if (failed != 0) return errno;
  fd.reset(::openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
  return fd ? 0 : errno;
}

// Of a node whatever its type, open in any way. fchmod(2) refuses O_PATH, hence the magic link.
int chmod_node(int fd, mode_t mode) {
  if (::fchmod(fd, mode) == 0) return 0;
  return errno == EBADF ? ::chmod(("/proc/self/fd/" + std::to_string(fd)).c_str(), mode) : -1;
}

// Whether this is a node that an agent made and had not given away yet when it died, which it leaves
// only where the kernel refuses BornAs. Anything else was changed by others since, and stays.
bool half_made(const OpContext& context, const Dress& dress, const Stat& st) {
  if (!context.who.root() || st.st_uid != context.who.agent_uid || dress.owner.uid == st.st_uid) return false;
  if (S_ISDIR(st.st_mode)) return (st.st_mode & 0777) == half_made_mode(true);
  if (S_ISREG(st.st_mode) && st.st_size != 0) return false;
  return st.st_nlink == 1 && (S_ISLNK(st.st_mode) || (st.st_mode & 07777) == half_made_mode(false));
}

// What birth did not give: the owner where the kernel refused BornAs, the mode where a umask, an ACL
// or the change of owner took bits.
Result<void> complete(const OpContext& context, int fd, const Dress& dress, const Stat& st) {
  const bool foreign = st.st_uid != dress.owner.uid || st.st_gid != dress.owner.gid;
  if (context.who.root() && foreign &&
      ::fchownat(fd, "", dress.owner.uid, dress.owner.gid, AT_EMPTY_PATH) != 0) {
    return base::last_errno("chown");
  }
  if (!S_ISLNK(st.st_mode) && (foreign || (st.st_mode & 07777) != dress.mode) &&
      chmod_node(fd, dress.mode) != 0) {
    return base::last_errno("chmod");
  }
  return {};
}

// Owner, mode and time of what was just made; `st` afterwards. A name that stands for another node by
// now (code in the sandbox moved it) is left alone.
Result<void> finish_make(const OpContext& context, const wire::Op& op, const Place& place, int fd,
                         const Dress& dress, Stat& st) {
  auto born = stat_fd(fd);
  if (!born) return std::move(born).error();
  const bool ours = (born->st_mode & S_IFMT) == type_of(op) &&
                    (born->st_uid == dress.owner.uid || half_made(context, dress, *born));
  if (!ours && context.who.root()) return base::errno_error(ESTALE, "create");
  if (auto whole = complete(context, fd, dress, *born); !whole) return whole;
  auto timed = op.kind == wire::OpKind::kCreate ? set_mtime(fd, op.mtime_ns)
                                                : set_mtime(place.dir.get(), place.name, op.mtime_ns);
  if (!timed) return timed;
  auto after = stat_fd(fd);
  if (!after) return std::move(after).error();
  st = *after;
  return {};
}

Result<void> check_make(const OpContext& context, const wire::Op& op) {
  const mode_t type = type_of(op);
  if (op.path.empty()) return base::errno_error(EEXIST, "root");
  if (op.kind == wire::OpKind::kSymlink && (op.target.empty() || op.target.find('\0') != std::string::npos)) {
    return base::errno_error(op.target.empty() ? ENOENT : EINVAL, "target");
  }
  if (op.kind == wire::OpKind::kMknod && (type == S_IFDIR || type == S_IFLNK)) {
    return base::errno_error(EINVAL, "mknod type");
  }
  const auto owner = owner_of(context, op);
  if (!context.who.root() && op.uid != wire::kOwnerUser && owner.uid != context.who.agent_uid) {
    return base::errno_error(EPERM, "owner");
  }
  return {};
}

// A file about to lose its name, kept open when the client still has it open.
struct Leaving {
  base::UniqueFd keep;  // for the orphan table
  base::UniqueFd look;  // O_PATH: its attributes afterwards
};

Result<Leaving> before_leaving(const wire::Op& op, const Place& place, const Stat& st) {
  Leaving leaving;
  leaving.look.reset(::openat(place.dir.get(), place.name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!has_flag(op, wire::kOpKeep) || !S_ISREG(st.st_mode)) return leaving;
  auto file = open_regular(place, node_of(st), O_RDWR);
  if (!file) file = open_for_write(place, node_of(st), O_RDWR);
  if (!file) file = open_regular(place, node_of(st), O_RDONLY);
  if (!file) return std::move(file).error();
  leaving.keep = std::move(file->fd);
  return leaving;
}

// Reserves the orphan before the name goes: a full table must refuse, not lose the file.
Result<void> keep(OpContext& context, const wire::Op& op, Leaving& leaving) {
  if (!leaving.keep) return {};
  return context.orphans.keep(op.op_id, std::move(leaving.keep));
}

void fill_gone(const Leaving& leaving, bool kept, wire::Attr& out) {
  if (!leaving.look) return;
  auto st = stat_fd(leaving.look.get());
  if (st && (st->st_nlink > 0 || kept)) out = make_attr(*st);
}

// A creation whose name was taken.
Result<void> make_over(const OpContext& context, const wire::Op& op, const Place& place, const Dress& dress,
                       wire::OpDone& done) {
  auto st = stat_place(place, {});
  if (!st) return std::move(st).error();
  if (!stands_for(op, place, *st)) return base::errno_error(EEXIST, "create");
  if (retried(op) && half_made(context, dress, *st)) {
    const base::UniqueFd fd(::openat(place.dir.get(), place.name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    st = fd ? stat_fd(fd.get()) : Result<Stat>(base::last_errno("open"));
    if (!st) return std::move(st).error();
    if (half_made(context, dress, *st)) {
      if (auto whole = complete(context, fd.get(), dress, *st); !whole) return whole;
    }
    st = stat_fd(fd.get());
    if (!st) return std::move(st).error();
  }
  const bool empties = op.kind == wire::OpKind::kCreate && (op.flags & (O_TRUNC | O_EXCL)) == O_TRUNC;
  if (empties) {
    if (auto emptied = empty_file(op, place, *st); !emptied) return emptied;
  }
  done.attr = make_attr(*st);
  fill_parent(place.dir.get(), done.parent);
  return {};
}

}  // namespace

Result<void> do_make(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (auto fine = check_make(context, op); !fine) return fine;
  auto place = place_in(context, op.root, op.path, op.expect);
  if (!place) return std::move(place).error();
  auto parent = stat_fd(place->dir.get());
  if (!parent) return std::move(parent).error();
  const auto dress = dress_of(context, op, *parent);
  base::UniqueFd fd;
  const int error = make_node(context, op, *place, dress, fd);
  if (error == EEXIST) return make_over(context, op, *place, dress, done);
  if (error != 0) return base::errno_error(error, "create");
  if (base::fault::active("agent.crash_in_create", op.path)) std::abort();
  Stat st;
  if (auto finished = finish_make(context, op, *place, fd.get(), dress, st); !finished) {
    (void)::unlinkat(place->dir.get(), place->name.c_str(),
                     op.kind == wire::OpKind::kMkdir ? AT_REMOVEDIR : 0);
    return finished;
  }
  done.attr = make_attr(st);
  fill_parent(place->dir.get(), done.parent);
  return {};
}

Result<void> do_link(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (op.orphan != 0) return base::errno_error(ENOENT, "link");  // nlink is 0: no name can be given back
  auto from = place_of(context, op);
  if (!from) return std::move(from).error();
  auto to = place_in(context, op.root, op.path2, op.expect2);
  if (!to) return std::move(to).error();
  auto st = stat_place(*from, op.expect);
  if (!st) return std::move(st).error();
  if (::linkat(from->dir.get(), from->name.c_str(), to->dir.get(), to->name.c_str(), 0) != 0) {
    const int error = errno;
    auto there = stat_place(*to, {});
    const bool applied =
        error == EEXIST && retried(op) && there.ok() && wire::same_node(node_of(*there), node_of(*st));
    if (!applied) return base::errno_error(error, "link");
  }
  auto after = stat_place(*to, {});
  if (!after) return std::move(after).error();
  if (!wire::same_node(node_of(*after), node_of(*st)))
    return base::errno_error(ESTALE, "link");  // replaced in between
  done.attr = make_attr(*after);
  fill_parent(to->dir.get(), done.parent);
  return {};
}

namespace {

// What is to be removed. Without attributes: a repeated removal, and its node is gone already.
struct Removed {
  Place place;
  std::optional<Stat> st;
};

Result<Removed> to_remove(OpContext& context, const wire::Op& op) {
  auto place = place_of(context, op);
  if (!place) return std::move(place).error();
  auto st = stat_place(*place, op.expect);
  if (st) return Removed{std::move(*place), *st};
  const int error = st.error().as_errno();
  if (!retried(op) || (error != ENOENT && error != ESTALE)) return std::move(st).error();
  return Removed{std::move(*place), std::nullopt};
}

}  // namespace

Result<void> do_unlink(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (op.path.empty()) return base::errno_error(EISDIR, "root");
  auto found = to_remove(context, op);
  if (!found) return std::move(found).error();
  const auto& [place, st] = *found;
  if (!st) {
    fill_parent(place.dir.get(), done.parent);
    return {};
  }
  if (S_ISDIR(st->st_mode)) return base::errno_error(EISDIR, "unlink");
  auto leaving = before_leaving(op, place, *st);
  if (!leaving) return std::move(leaving).error();
  const bool kept = static_cast<bool>(leaving->keep);
  if (auto fine = keep(context, op, *leaving); !fine) return fine;
  if (::unlinkat(place.dir.get(), place.name.c_str(), 0) != 0) {
    const int error = errno;
    context.orphans.forget(op.op_id);
    return base::errno_error(error, "unlink");
  }
  fill_gone(*leaving, kept, done.attr);
  fill_parent(place.dir.get(), done.parent);
  return {};
}

Result<void> do_rmdir(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (op.path.empty()) return base::errno_error(EBUSY, "root");
  auto found = to_remove(context, op);
  if (!found) return std::move(found).error();
  const auto& [place, st] = *found;
  if (st && ::unlinkat(place.dir.get(), place.name.c_str(), AT_REMOVEDIR) != 0) {
    return base::last_errno("rmdir");
  }
  fill_parent(place.dir.get(), done.parent);
  return {};
}

namespace {

// A repeated rename whose source is no longer what it was: was it done before?
bool rename_applied(const wire::Op& op, const Place& to, wire::OpDone& done) {
  if (!retried(op)) return false;
  auto there = stat_place(to, op.expect);  // any node when nothing was expected
  if (!there) return false;
  done.attr = make_attr(*there);
  return true;
}

void fill_parents(const Place& from, const Place& to, wire::OpDone& done) {
  fill_parent(from.dir.get(), done.parent);
  wire::Attr second;
  fill_parent(to.dir.get(), second);
  if (!wire::same_node(second, done.parent)) done.parent2 = second;
}

}  // namespace

Result<void> do_rename(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (op.path.empty() || op.path2.empty()) return base::errno_error(EBUSY, "root");
  constexpr unsigned kKnown = RENAME_NOREPLACE | RENAME_EXCHANGE;
  if ((op.flags & ~kKnown) != 0) return base::errno_error(EINVAL, "flags");
  auto from = place_of(context, op);
  if (!from) return std::move(from).error();
  auto to = place_in(context, op.root, op.path2, op.expect2);
  if (!to) return std::move(to).error();
  auto st = stat_place(*from, op.expect);
  if (!st) {
    const int error = st.error().as_errno();
    if ((error != ENOENT && error != ESTALE) || !rename_applied(op, *to, done)) return std::move(st).error();
    fill_parents(*from, *to, done);
    return {};
  }
  Leaving leaving;
  if (op.flags == 0 && has_flag(op, wire::kOpKeep)) {
    auto replaced = stat_place(*to, {});
    if (replaced && !wire::same_node(node_of(*replaced), node_of(*st))) {
      auto ready = before_leaving(op, *to, *replaced);
      if (!ready) return std::move(ready).error();
      leaving = std::move(*ready);
    }
  }
  if (auto fine = keep(context, op, leaving); !fine) return fine;
  if (::renameat2(from->dir.get(), from->name.c_str(), to->dir.get(), to->name.c_str(), op.flags) != 0) {
    const int error = errno;
    context.orphans.forget(op.op_id);
    return base::errno_error(error, "rename");
  }
  if (auto after = stat_place(*to, {})) done.attr = make_attr(*after);
  fill_parents(*from, *to, done);
  return {};
}

}  // namespace nearbox::agent::detail
