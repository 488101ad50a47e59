// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/reader.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <fcntl.h>
#include <limits>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "tools/agent/fs_path.h"
#include "tools/agent/versions.h"
#include "tools/agent/xattrs.h"

namespace nearbox::agent {
namespace {

using base::Result;

// What to read from: the kept file, or a fresh descriptor.
struct Source {
  OrphanTable::FdPtr kept;
  base::UniqueFd own;
  int fd() const { return kept ? kept->get() : own.get(); }
};

Result<Place> place_of(ReadContext& context, std::uint32_t root, const std::string& path) {
  auto at = context.roots.get(root);
  if (!at) return std::move(at).error();
  return open_place((*at)->dir.get(), path);
}

// `open` (place, expected node) gives the fresh descriptor.
template <class Open>
Result<Source> open_source(ReadContext& context, const wire::PathCall& at, Open open) {
  Source source;
  if (at.orphan != 0) {
    auto kept = context.orphans.get(at.orphan, at.expect);
    if (!kept) return std::move(kept).error();
    source.kept = std::move(*kept);
    return source;
  }
  auto place = place_of(context, at.root, at.path);
  if (!place) return std::move(place).error();
  Result<base::UniqueFd> fd = open(*place, at.expect);
  if (!fd) return std::move(fd).error();
  source.own = std::move(*fd);
  return source;
}

Result<base::UniqueFd> open_to_read(const Place& place, wire::NodeId expect) {
  auto file = open_regular(place, expect, O_RDONLY);
  if (!file) return std::move(file).error();
  return std::move(file->fd);
}

// Reads until `into` is full or the file ends.
Result<std::size_t> read_full(int fd, std::span<std::byte> into, std::uint64_t offset) {
  std::size_t have = 0;
  while (have < into.size()) {
    const ssize_t n = ::pread(fd, into.data() + have, into.size() - have, static_cast<off_t>(offset + have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read");
    if (n == 0) break;
    have += static_cast<std::size_t>(n);
  }
  return have;
}

}  // namespace

void answer_read(ReadContext& context, const wire::Read& call, channel::Responder& responder) {
  constexpr std::uint64_t kMaxOffset = std::numeric_limits<std::int64_t>::max();
  if (call.length > wire::kMaxReadBytes || call.offset > kMaxOffset - call.length) {
    return responder.end(EINVAL);
  }
  const Uncounted here(context.roots.uncounted(call.at.root, call.at.path));
  const auto as_of = Versions::process().now();
  auto source = open_source(context, call.at, open_to_read);
  if (!source) return responder.end(source.error().as_errno());
  wire::Bytes buffer(std::min<std::uint64_t>(kReadChunk, call.length));
  wire::ReadReply reply;
  std::uint64_t at = call.offset;
  const std::uint64_t end = call.offset + call.length;
  while (at < end && !reply.eof) {
    const auto want = static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), end - at));
    auto got = read_full(source->fd(), std::span(buffer).first(want), at);
    if (!got) return responder.end(got.error().as_errno());
    reply.eof = *got < want;
    at += *got;
    if (*got > 0 && !responder.send(wire::ByteView(buffer).first(*got))) return responder.end(ECANCELED);
  }
  auto st = stat_fd(source->fd());
  if (!st) return responder.end(st.error().as_errno());
  reply.attr = make_attr(*st, as_of);
  reply.eof = reply.eof || at >= reply.attr.size;
  responder.end(0, wire::encode(reply));
}

namespace {

// Files of a read_many call, opened ahead of their turn so that a cold disk works on several.
class OpenAhead {
 public:
  OpenAhead(ReadContext& context, const wire::ReadMany& call) : context_(context), call_(call) {}

  Result<OpenFile> take(std::size_t index) {
    while (next_ < call_.items.size() && next_ <= index + kAhead) {
      ring_[next_ % ring_.size()] = open(call_.items[next_]);
      ++next_;
    }
    return std::move(ring_[index % ring_.size()]);
  }

 private:
  static constexpr std::size_t kAhead = 15;

  Result<OpenFile> open(const wire::ReadManyItem& item) const {
    auto place = place_of(context_, call_.root, item.path);
    if (!place) return std::move(place).error();
    auto file = open_regular(*place, item.expect, O_RDONLY);
    if (file && file->st.st_size > 0 && file->st.st_size <= static_cast<off_t>(call_.max_file)) {
      (void)::posix_fadvise(file->fd.get(), 0, file->st.st_size, POSIX_FADV_WILLNEED);
    }
    return file;
  }

  ReadContext& context_;
  const wire::ReadMany& call_;
  std::size_t next_ = 0;
  std::vector<Result<OpenFile>> ring_ = make_ring();
  static std::vector<Result<OpenFile>> make_ring() {
    std::vector<Result<OpenFile>> ring;
    for (std::size_t i = 0; i <= kAhead; ++i) ring.emplace_back(base::errno_error(EINVAL));
    return ring;
  }
};

// One file whole. A file that grew past the limit while it was read is EFBIG as well.
wire::ReadManyRecord read_whole(Result<OpenFile>& file, std::uint64_t limit) {
  wire::ReadManyRecord record;
  if (!file) {
    record.error = file.error().as_errno();
    return record;
  }
  const auto as_of = Versions::process().now();
  record.attr = make_attr(file->st, as_of);
  if (record.attr.size > limit) {
    record.error = EFBIG;
    return record;
  }
  record.data.resize(record.attr.size + 1);  // one more: sees growth
  auto got = read_full(file->fd.get(), record.data, 0);
  auto st = stat_fd(file->fd.get());
  if (!got || !st) {
    record.error = got ? st.error().as_errno() : got.error().as_errno();
    record.data.clear();
    return record;
  }
  record.attr = make_attr(*st, as_of);
  if (*got > limit || *got != record.attr.size) {  // it is being written: let the client read it by itself
    record.error = *got > limit ? EFBIG : EAGAIN;
    record.data.clear();
    return record;
  }
  record.data.resize(*got);
  return record;
}

}  // namespace

void answer_read_many(ReadContext& context, const wire::ReadMany& call, channel::Responder& responder) {
  const std::uint64_t max_file = std::min<std::uint64_t>(call.max_file, wire::kMaxWriteBytes);
  std::uint64_t left = call.max_total;
  OpenAhead files(context, call);
  wire::Bytes out;
  wire::Writer writer(out);
  for (std::size_t i = 0; i < call.items.size(); ++i) {
    auto file = files.take(i);
    const Uncounted here(context.roots.uncounted(call.root, call.items[i].path));
    auto record = read_whole(file, std::min(max_file, left));
    record.index = static_cast<std::uint32_t>(i);
    left -= std::min<std::uint64_t>(left, record.data.size());
    const auto encoded = wire::encode(record);
    writer.num(static_cast<std::uint32_t>(encoded.size()));
    out.insert(out.end(), encoded.begin(), encoded.end());
    if (out.size() < kReadChunk && i + 1 < call.items.size()) continue;
    if (!responder.send(out)) return responder.end(ECANCELED);
    out.clear();
  }
  responder.end(0);
}

namespace {

Result<std::string> link_target(int dir, const char* name) {
  std::array<char, wire::kMaxPath> buffer{};
  const ssize_t n = ::readlinkat(dir, name, buffer.data(), buffer.size());
  if (n < 0) return base::last_errno("readlink");
  return std::string(buffer.data(), static_cast<std::size_t>(n));
}

wire::StatResult stat_one(ReadContext& context, std::uint32_t root, const std::string& path) {
  wire::StatResult result;
  auto place = place_of(context, root, path);
  if (!place) {
    result.error = place.error().as_errno();
    return result;
  }
  const Uncounted here(context.roots.uncounted(root, path));
  const auto as_of = Versions::process().now();
  auto st = stat_place(*place, {});
  if (!st) {
    result.error = st.error().as_errno();
    return result;
  }
  result.attr = make_attr(*st, as_of);
  if (!S_ISLNK(st->st_mode)) return result;
  auto target = link_target(place->dir.get(), place->name.c_str());
  if (target) {
    result.target = std::move(*target);
  } else {
    result.error = target.error().as_errno();  // replaced in between
  }
  return result;
}

}  // namespace

void answer_stat_many(ReadContext& context, const wire::StatMany& call, channel::Responder& responder) {
  wire::StatManyReply reply;
  reply.results.reserve(call.paths.size());
  std::size_t bytes = 0;
  for (const auto& path : call.paths) {
    if (responder.cancelled()) return responder.end(ECANCELED);
    reply.results.push_back(stat_one(context, call.root, path));
    bytes += 128 + reply.results.back().target.size();
    if (bytes > wire::kMaxMessage) return responder.end(EMSGSIZE);
  }
  responder.end(0, wire::encode(reply));
}

void answer_stat_fs(ReadContext& context, const wire::PathCall& call, channel::Responder& responder) {
  auto root = context.roots.get(call.root);
  if (!root) return responder.end(root.error().as_errno());
  auto fd = open_beneath((*root)->dir.get(), call.path, O_PATH);
  if (!fd) return responder.end(fd.error().as_errno());
  struct statvfs fs {};
  if (::fstatvfs(fd->get(), &fs) != 0) return responder.end(errno);
  wire::StatFsReply reply;
  reply.blocks = fs.f_blocks;
  reply.bfree = fs.f_bfree;
  // A process of root may use the reserved blocks, the sandbox user may not: what it can use is told.
  reply.bavail = fs.f_bavail;
  reply.files = fs.f_files;
  reply.ffree = fs.f_ffree;
  reply.bsize = static_cast<std::uint32_t>(fs.f_bsize);
  reply.frsize = static_cast<std::uint32_t>(fs.f_frsize);
  reply.namelen = static_cast<std::uint32_t>(fs.f_namemax);
  responder.end(0, wire::encode(reply));
}

namespace {

void answer_bytes(Result<wire::Bytes>&& bytes, channel::Responder& responder) {
  if (!bytes) return responder.end(bytes.error().as_errno());
  responder.end(0, wire::encode(wire::BytesReply{std::move(*bytes)}));
}

}  // namespace

void answer_get_xattr(ReadContext& context, const wire::XattrCall& call, channel::Responder& responder) {
  if (!user_xattr(call.name)) return responder.end(ENODATA);
  auto source = open_source(context, call.at, open_for_xattr);
  if (!source) return responder.end(source.error().as_errno() == EPERM ? ENODATA : source.error().as_errno());
  answer_bytes(get_xattr(source->fd(), call.name), responder);
}

void answer_list_xattr(ReadContext& context, const wire::XattrCall& call, channel::Responder& responder) {
  auto source = open_source(context, call.at, open_for_xattr);
  if (!source && source.error().as_errno() == EPERM) return answer_bytes(wire::Bytes{}, responder);
  if (!source) return responder.end(source.error().as_errno());
  answer_bytes(list_xattrs(source->fd()), responder);
}

void answer_read_link(ReadContext& context, const wire::PathCall& call, channel::Responder& responder) {
  auto place = place_of(context, call.root, call.path);
  if (!place) return responder.end(place.error().as_errno());
  auto st = stat_place(*place, call.expect);
  if (!st) return responder.end(st.error().as_errno());
  auto target = link_target(place->dir.get(), place->name.c_str());
  if (!target) return responder.end(target.error().as_errno());
  const auto bytes = wire::as_view(*target);
  answer_bytes(wire::Bytes(bytes.begin(), bytes.end()), responder);
}

void answer_info(const Identity& who, channel::Responder& responder) {
  wire::InfoReply reply;
  struct utsname name {};
  if (::uname(&name) == 0) {
    reply.hostname = name.nodename;
    reply.kernel = name.release;
  }
  reply.user = who.user;
  reply.home = who.home;
  reply.work_dir = who.home;
  reply.uid = who.uid;
  reply.gid = who.gid;
  reply.agent_uid = who.agent_uid;
  const auto now = [](clockid_t clock) {
    struct timespec t {};
    (void)::clock_gettime(clock, &t);
    return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
  };
  reply.boottime_ns = now(CLOCK_BOOTTIME);
  reply.realtime_ns = now(CLOCK_REALTIME);
  responder.end(0, wire::encode(reply));
}

}  // namespace nearbox::agent
