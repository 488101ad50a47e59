// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <limits>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include "client/base/fault.h"
#include "tools/agent/fs_ops_detail.h"

// Operations on the bytes of files.
namespace nearbox::agent::detail {
namespace {

constexpr std::size_t kCopyBuffer = 256 * 1024;
constexpr std::uint64_t kMaxOffset = std::numeric_limits<std::int64_t>::max();

bool fits(std::uint64_t offset, std::uint64_t length) {
  return offset <= kMaxOffset && length <= kMaxOffset - offset;
}

Result<void> fill_attr(int fd, wire::OpDone& done) {
  auto st = stat_fd(fd);
  if (!st) return std::move(st).error();
  done.attr = make_attr(*st);
  return {};
}

// What a change finds. By it the client learns of a change by somebody else that the attributes afterwards
// do not show: one of equal size right before its own.
Result<void> fill_before(int fd, wire::OpDone& done) {
  auto st = stat_fd(fd);
  if (!st) return std::move(st).error();
  done.before = make_attr_before(*st);
  return {};
}

// The mtime the client showed, then the attributes. The data is in place already, so a time that
// cannot be set (a file of another owner, an agent without root) is no failure of the write.
Result<void> finish(int fd, const wire::Op& op, wire::OpDone& done) {
  (void)set_mtime(fd, op.mtime_ns);
  return fill_attr(fd, done);
}

// As write(2): bytes that were written count, and the next call meets what stopped this one.
Result<void> outcome(Result<void> result, Result<void> finished, const wire::OpDone& done) {
  return result || done.written > 0 ? std::move(finished) : std::move(result);
}

// `quiet`: with no event of the kernel's, as long as that works.
Result<void> write_at(int fd, wire::ByteView data, std::uint64_t offset, std::uint64_t& written,
                      bool& quiet) {
  while (!data.empty()) {
    if (quiet) {
      auto n = OwnWrites::write(fd, data, offset);
      quiet = n.ok() && *n > 0;  // else the call below says why
      if (!quiet) continue;
      data = data.subspan(*n);
      offset += *n;
      written += *n;
      continue;
    }
    const ssize_t n = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("write");
    if (n == 0) return base::errno_error(EIO, "write");
    data = data.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
    written += static_cast<std::uint64_t>(n);
  }
  return {};
}

Result<void> write_at(int fd, wire::ByteView data, std::uint64_t offset, std::uint64_t& written) {
  bool quiet = false;
  return write_at(fd, data, offset, written, quiet);
}

// Whether the bytes of a repeated append lie where the client believed they would.
bool append_applied(int fd, const wire::Op& op) {
  if (!retried(op) || op.data.empty() || !fits(op.offset, op.data.size())) return false;
  wire::Bytes there(op.data.size());
  std::size_t have = 0;
  while (have < there.size()) {
    const ssize_t n =
        ::pread(fd, there.data() + have, there.size() - have, static_cast<off_t>(op.offset + have));
    if (n <= 0) return false;
    have += static_cast<std::size_t>(n);
  }
  return there == op.data;
}

}  // namespace

Result<DataFile> open_data(OpContext& context, const wire::Op& op, int flags) {
  DataFile file;
  if (op.orphan != 0) {
    auto kept = context.orphans.get(op.orphan, op.expect);
    if (!kept) return std::move(kept).error();
    file.kept = std::move(*kept);
    file.fd = file.kept->get();
    return file;
  }
  auto place = place_of(context, op);
  if (!place) return std::move(place).error();
  const bool writes = (flags & O_ACCMODE) != O_RDONLY;
  auto opened = writes ? open_for_write(*place, op.expect, flags) : open_regular(*place, op.expect, flags);
  if (!opened) return std::move(opened).error();
  file.own = std::move(opened->fd);
  file.fd = file.own.get();
  file.place = std::move(*place);
  return file;
}

Result<void> do_write(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (!fits(op.offset, op.data.size())) return base::errno_error(EFBIG, "write");
  auto file = open_data(context, op, O_WRONLY);
  if (!file) return std::move(file).error();
  if (auto looked = fill_before(file->fd, done); !looked) return looked;
  bool quiet = context.own_writes != nullptr && context.own_writes->wanted() && file->own;
  auto result = write_at(file->fd, op.data, op.offset, done.written, quiet);
  auto finished = finish(file->fd, op, done);
  if (quiet) context.own_writes->close(std::move(file->own), file->place.dir.get(), file->place.name);
  return outcome(std::move(result), std::move(finished), done);
}

Result<void> do_append(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  auto file = open_data(context, op, retried(op) ? O_RDWR : O_WRONLY);
  if (!file) return std::move(file).error();
  if (auto looked = fill_before(file->fd, done); !looked) return looked;
  if (append_applied(file->fd, op)) {
    done.written = op.data.size();
    done.offset = op.offset;
    return fill_attr(file->fd, done);
  }
  Result<void> result;
  auto data = wire::ByteView(op.data);
  while (!data.empty()) {
    // RWF_APPEND rather than O_APPEND: a kept file was opened without it.
    struct iovec part {
      const_cast<std::byte*>(data.data()), data.size()
    };
    const ssize_t n = ::pwritev2(file->fd, &part, 1, -1, RWF_APPEND);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      result = base::errno_error(n == 0 ? EIO : errno, "append");
      break;
    }
    if (done.written == 0) {
      done.offset = static_cast<std::uint64_t>(std::max<off_t>(::lseek(file->fd, 0, SEEK_CUR) - n, 0));
    }
    done.written += static_cast<std::uint64_t>(n);
    data = data.subspan(static_cast<std::size_t>(n));
  }
  auto finished = finish(file->fd, op, done);
  return outcome(std::move(result), std::move(finished), done);
}

Result<void> do_truncate(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (op.size > kMaxOffset) return base::errno_error(EFBIG, "truncate");
  auto file = open_data(context, op, O_WRONLY);
  if (!file) return std::move(file).error();
  if (auto looked = fill_before(file->fd, done); !looked) return looked;
  if (::ftruncate(file->fd, static_cast<off_t>(op.size)) != 0) return base::last_errno("truncate");
  return finish(file->fd, op, done);
}

Result<void> do_fallocate(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (!fits(op.offset, op.size)) return base::errno_error(EFBIG, "fallocate");
  auto file = open_data(context, op, O_WRONLY);
  if (!file) return std::move(file).error();
  if (auto looked = fill_before(file->fd, done); !looked) return looked;
  const auto mode = static_cast<int>(op.flags);
  if (::fallocate(file->fd, mode, static_cast<off_t>(op.offset), static_cast<off_t>(op.size)) != 0) {
    return base::last_errno("fallocate");
  }
  return finish(file->fd, op, done);
}

Result<void> do_fsync(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  OrphanTable::FdPtr kept;
  base::UniqueFd own;
  if (op.orphan != 0) {
    auto got = context.orphans.get(op.orphan, op.expect);
    if (!got) return std::move(got).error();
    kept = std::move(*got);
  } else {
    auto place = place_of(context, op);
    if (!place) return std::move(place).error();
    auto st = stat_place(*place, op.expect);
    if (!st) return std::move(st).error();
    // A symlink, FIFO or device has no bytes of its own: its directory is what can be made durable.
    const bool whole = S_ISREG(st->st_mode) || S_ISDIR(st->st_mode);
    const char* name = whole ? place->name.c_str() : ".";
    const int flags = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    own.reset(::openat(place->dir.get(), name, O_RDONLY | flags));
    if (!own && errno == EACCES) own.reset(::openat(place->dir.get(), name, O_WRONLY | flags));
    if (!own) return base::last_errno("open");
    if (whole) {
      auto now = stat_fd(own.get());
      if (!now) return std::move(now).error();
      if (!wire::same_node(node_of(*now), node_of(*st))) return base::errno_error(ESTALE, "fsync");
    }
  }
  const int fd = kept ? kept->get() : own.get();
  if ((op.flags == 1 ? ::fdatasync(fd) : ::fsync(fd)) != 0) return base::last_errno("fsync");
  return fill_attr(fd, done);
}

namespace {

Result<void> copy_by_hand(int in, int out, std::uint64_t from, std::uint64_t to, std::uint64_t left,
                          std::uint64_t& written) {
  wire::Bytes buffer(kCopyBuffer);
  while (left > 0) {
    const auto want = std::min<std::uint64_t>(left, buffer.size());
    const ssize_t n = ::pread(in, buffer.data(), want, static_cast<off_t>(from));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read");
    if (n == 0) return {};
    const auto got = static_cast<std::size_t>(n);
    if (auto fine = write_at(out, wire::ByteView(buffer).first(got), to, written); !fine) return fine;
    from += got;
    to += got;
    left -= got;
  }
  return {};
}

// Overlapping ranges of one file are EINVAL for good; what the file system cannot do goes through memory.
bool can_copy_by_hand(int error, int in, int out) {
  if (error == EXDEV || error == ENOSYS || error == EOPNOTSUPP || error == EPERM) return true;
  auto a = stat_fd(in);
  auto b = stat_fd(out);
  return error == EINVAL && a.ok() && b.ok() && !wire::same_node(node_of(*a), node_of(*b));
}

Result<void> copy_range(int in, int out, const wire::Op& op, std::uint64_t& written) {
  auto from = static_cast<off64_t>(op.offset);
  auto to = static_cast<off64_t>(op.rdev);
  std::uint64_t left = op.size;
  while (left > 0) {
    const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(left, 1U << 30));
    const bool refused = base::fault::active("agent.no_copy_file_range");
    const ssize_t n = refused ? -1 : ::copy_file_range(in, &from, out, &to, step, 0);
    if (n < 0 && !refused && errno == EINTR) continue;
    if (n < 0) {
      const int error = refused ? ENOSYS : errno;
      if (written != 0 || !can_copy_by_hand(error, in, out)) return base::errno_error(error, "copy");
      return copy_by_hand(in, out, op.offset, op.rdev, op.size, written);
    }
    if (n == 0) return {};
    written += static_cast<std::uint64_t>(n);
    left -= static_cast<std::uint64_t>(n);
  }
  return {};
}

}  // namespace

Result<void> do_copy_range(OpContext& context, const wire::Op& op, wire::OpDone& done) {
  if (!fits(op.offset, op.size) || !fits(op.rdev, op.size)) return base::errno_error(EFBIG, "copy");
  auto in = open_data(context, op, O_RDONLY);
  if (!in) return std::move(in).error();
  auto place = place_in(context, op.root, op.path2, wire::NodeId{});
  if (!place) return std::move(place).error();
  auto out = open_for_write(*place, op.expect2, O_WRONLY);
  if (!out) return std::move(out).error();
  if (auto looked = fill_before(out->fd.get(), done); !looked) return looked;
  auto result = copy_range(in->fd, out->fd.get(), op, done.written);
  auto finished = finish(out->fd.get(), op, done);
  return outcome(std::move(result), std::move(finished), done);
}

}  // namespace nearbox::agent::detail
