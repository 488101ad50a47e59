// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/libfuse_ops.h"

#include <cerrno>
#include <exception>
#include <fcntl.h>
#include <utility>

#include "fs/fuse/session.h"

namespace nearbox::fs {

// Nothing unwinds through libfuse: what a handler throws (memory) ends in Request's destructor, EIO.
struct LibfuseHandlers {
  static Session& session(fuse_req_t req) {
    return *static_cast<SessionHandle*>(fuse_req_userdata(req))->session;
  }

  template <class F>
  static void handle(fuse_req_t req, const char* op, Ino ino, F&& fn) noexcept {
    Session& self = session(req);
    try {
      fn(self, self.wrap(req, op, ino));
    } catch (const std::exception& e) {
      self.log_.error(std::string("fuse op=") + op + " exception=" + e.what());
    }
  }

  static void init(void* user, fuse_conn_info* conn) {
    conn->want &= ~static_cast<unsigned>(
        FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_ATOMIC_O_TRUNC |
        FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
        FUSE_CAP_SPLICE_MOVE | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_EXPORT_SUPPORT |
        FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK);
    conn->want |= conn->capable &
                  static_cast<unsigned>(FUSE_CAP_READDIRPLUS | FUSE_CAP_PARALLEL_DIROPS |
                                        FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO);
    conn->max_background = kMaxBackground;
    conn->congestion_threshold = kCongestion;
    conn->time_gran = 1;
    static_cast<SessionHandle*>(user)->session->met_kernel(conn->proto_minor);
  }

  static void lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
    handle(req, "lookup", parent, [&](Session& s, Request r) { s.lookup(std::move(r), parent, name); });
  }
  static void forget(fuse_req_t req, fuse_ino_t ino, std::uint64_t count) {
    handle(req, "forget", ino, [&](Session& s, Request r) {
      r.none();
      s.forget({{ino, count}});
    });
  }
  static void forget_multi(fuse_req_t req, std::size_t count, fuse_forget_data* forgets) {
    handle(req, "forget_multi", 0, [&](Session& s, Request r) {
      std::vector<std::pair<Ino, std::uint64_t>> list;
      list.reserve(count);
      for (std::size_t i = 0; i < count; ++i) list.emplace_back(forgets[i].ino, forgets[i].nlookup);
      r.none();
      s.forget(list);
    });
  }
  static void getattr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
    handle(req, "getattr", ino, [&](Session& s, Request r) { s.getattr(std::move(r), ino); });
  }
  static void setattr(fuse_req_t req, fuse_ino_t ino, struct stat* st, int to_set, fuse_file_info*) {
    handle(req, "setattr", ino, [&](Session& s, Request r) { s.setattr(std::move(r), ino, *st, to_set); });
  }
  static void readlink(fuse_req_t req, fuse_ino_t ino) {
    handle(req, "readlink", ino, [&](Session& s, Request r) { s.readlink(std::move(r), ino); });
  }
  static void mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t rdev) {
    handle(req, "mknod", parent,
           [&](Session& s, Request r) { s.mknod(std::move(r), parent, name, mode, rdev); });
  }
  static void mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) {
    handle(req, "mkdir", parent, [&](Session& s, Request r) { s.mkdir(std::move(r), parent, name, mode); });
  }
  static void unlink(fuse_req_t req, fuse_ino_t parent, const char* name) {
    handle(req, "unlink", parent,
           [&](Session& s, Request r) { s.remove(std::move(r), parent, name, false); });
  }
  static void rmdir(fuse_req_t req, fuse_ino_t parent, const char* name) {
    handle(req, "rmdir", parent, [&](Session& s, Request r) { s.remove(std::move(r), parent, name, true); });
  }
  static void symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) {
    handle(req, "symlink", parent,
           [&](Session& s, Request r) { s.symlink(std::move(r), parent, name, target); });
  }
  static void rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t parent2,
                     const char* name2, unsigned flags) {
    handle(req, "rename", parent,
           [&](Session& s, Request r) { s.rename(std::move(r), parent, name, parent2, name2, flags); });
  }
  static void link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char* name) {
    handle(req, "link", ino, [&](Session& s, Request r) { s.link(std::move(r), ino, parent, name); });
  }
  // ENOSYS on purpose: the kernel then sends neither OPEN nor RELEASE (OPENDIR, RELEASEDIR) any more
  // and keeps what it cached.
  static void open(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
    handle(req, "open", ino, [](Session&, Request r) { r.error(ENOSYS); });
  }
  static void release(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
    handle(req, "release", ino, [](Session&, Request r) { r.error(0); });
  }
  static void read(fuse_req_t req, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info*) {
    handle(req, "read", ino, [&](Session& s, Request r) {
      s.read(std::move(r), ino, size, static_cast<std::uint64_t>(offset));
    });
  }
  static void write(fuse_req_t req, fuse_ino_t ino, const char* data, std::size_t size, off_t offset,
                    fuse_file_info* info) {
    handle(req, "write", ino, [&](Session& s, Request r) {
      const auto view = wire::as_view({data, size});
      const bool append = (info->flags & O_APPEND) != 0 && info->writepage == 0;
      s.write(std::move(r), ino, wire::Bytes(view.begin(), view.end()), static_cast<std::uint64_t>(offset),
              append);
    });
  }
  static void fsync(fuse_req_t req, fuse_ino_t ino, int data_only, fuse_file_info*) {
    handle(req, "fsync", ino, [&](Session& s, Request r) { s.fsync(std::move(r), ino, data_only != 0); });
  }
  static void readdir(fuse_req_t req, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info*) {
    handle(req, "readdir", ino, [&](Session& s, Request r) {
      s.readdir(std::move(r), ino, size, static_cast<std::uint64_t>(offset), false);
    });
  }
  static void readdirplus(fuse_req_t req, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info*) {
    handle(req, "readdirplus", ino, [&](Session& s, Request r) {
      s.readdir(std::move(r), ino, size, static_cast<std::uint64_t>(offset), true);
    });
  }
  static void statfs(fuse_req_t req, fuse_ino_t ino) {
    handle(req, "statfs", ino, [](Session& s, Request r) { s.statfs(std::move(r)); });
  }
  static void create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* info) {
    handle(req, "create", parent,
           [&](Session& s, Request r) { s.create(std::move(r), parent, name, mode, info); });
  }
  static void fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                        fuse_file_info*) {
    handle(req, "fallocate", ino, [&](Session& s, Request r) {
      s.fallocate(std::move(r), ino, mode, static_cast<std::uint64_t>(offset),
                  static_cast<std::uint64_t>(length));
    });
  }
  static void copy_file_range(fuse_req_t req, fuse_ino_t from, off_t from_offset, fuse_file_info*,
                              fuse_ino_t to, off_t to_offset, fuse_file_info*, std::size_t length, int) {
    handle(req, "copy_file_range", from, [&](Session& s, Request r) {
      s.copy_range(std::move(r), from, static_cast<std::uint64_t>(from_offset), to,
                   static_cast<std::uint64_t>(to_offset), length);
    });
  }
};

// Handlers that are not set answer ENOSYS: access, flush, xattrs, locks, lseek, poll, bmap.
const fuse_lowlevel_ops& libfuse_ops() {
  static const fuse_lowlevel_ops ops = [] {
    using H = LibfuseHandlers;
    fuse_lowlevel_ops o{};
    o.init = H::init;
    o.lookup = H::lookup;
    o.forget = H::forget;
    o.forget_multi = H::forget_multi;
    o.getattr = H::getattr;
    o.setattr = H::setattr;
    o.readlink = H::readlink;
    o.mknod = H::mknod;
    o.mkdir = H::mkdir;
    o.unlink = H::unlink;
    o.rmdir = H::rmdir;
    o.symlink = H::symlink;
    o.rename = H::rename;
    o.link = H::link;
    o.open = H::open;
    o.opendir = H::open;
    o.release = H::release;
    o.releasedir = H::release;
    o.read = H::read;
    o.write = H::write;
    o.fsync = H::fsync;
    o.fsyncdir = H::fsync;
    o.readdir = H::readdir;
    o.readdirplus = H::readdirplus;
    o.statfs = H::statfs;
    o.create = H::create;
    o.fallocate = H::fallocate;
    o.copy_file_range = H::copy_file_range;
    return o;
  }();
  return ops;
}

}  // namespace nearbox::fs
