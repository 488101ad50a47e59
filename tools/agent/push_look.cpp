// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/push_look.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <string_view>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "client/wire/chunker.h"
#include "client/wire/paths.h"
#include "tools/agent/push_place.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kReadBytes = 1024 * 1024;
constexpr std::size_t kChunkBatch = 4096;  // records sent at one time

// Places below a root, the directory of the last one kept open.
class Places {
 public:
  explicit Places(const Root& root) : root_(root) {}

  // nullptr with errno in error().
  const Place* at(std::string_view path) {
    error_ = 0;
    if (path.empty() || !wire::valid_path(path)) return fail(EINVAL);
    const auto slash = path.rfind('/');
    const auto directory = slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
    if (!place_.dir || directory != directory_) {
      auto opened = open_beneath(root_.dir.get(), directory, O_PATH | O_DIRECTORY);
      place_.dir.reset();
      if (!opened) return fail(opened.error().as_errno());
      place_.dir = std::move(*opened);
      directory_ = directory;
    }
    place_.name = slash == std::string_view::npos ? path : path.substr(slash + 1);
    return &place_;
  }
  int error() const { return error_; }

 private:
  const Place* fail(int error) {
    error_ = error;
    return nullptr;
  }
  const Root& root_;
  std::string directory_;
  Place place_;
  int error_ = 0;
};

wire::PushSeen seen_of_error(int error) {
  if (error == ENOENT) return wire::PushSeen::kMissing;
  if (error == ENOTDIR || error == ELOOP) return wire::PushSeen::kOther;
  return wire::PushSeen::kNoAccess;
}

wire::PushSeen check_one(Places& places, const std::string& path, std::uint32_t stamp) {
  const auto* const place = places.at(path);
  if (place == nullptr) return seen_of_error(places.error());
  auto st = stat_place(*place, {});
  if (!st) return seen_of_error(st.error().as_errno());
  return static_cast<std::uint32_t>(stamp_of(*st)) == stamp ? wire::PushSeen::kSame : wire::PushSeen::kOther;
}

wire::PushCompareResult compare_one(Places& places, const wire::PushCompareItem& item) {
  const auto* const place = places.at(item.path);
  if (place == nullptr) return {seen_of_error(places.error()), 0};
  auto rough = look_at(*place, false);
  if (!rough) return {seen_of_error(rough.error().as_errno()), 0};
  using Kind = PushFound::Kind;
  const auto wanted = item.type == wire::PushType::kDirectory ? Kind::kDirectory
                      : item.type == wire::PushType::kSymlink ? Kind::kSymlink
                                                              : Kind::kFile;
  if (rough->found.kind == Kind::kNothing) return {wire::PushSeen::kMissing, 0};
  const bool sized = wanted != Kind::kFile || static_cast<std::uint64_t>(rough->st.st_size) == item.size;
  if (rough->found.kind != wanted || !sized) return {wire::PushSeen::kOther, 0};
  const auto same_mode = [&](const Stat& st) {
    constexpr std::uint32_t kCompared = 07777 & ~std::uint32_t{S_ISGID};
    return wanted == Kind::kSymlink || ((st.st_mode ^ item.mode) & kCompared) == 0;
  };
  if (wanted != Kind::kDirectory) {
    auto sight = look_at(*place, true);
    if (!sight) return {seen_of_error(sight.error().as_errno()), 0};
    if (sight->found.kind != wanted || sight->found.digest != item.digest) return {wire::PushSeen::kOther, 0};
    return {same_mode(sight->st) ? wire::PushSeen::kSame : wire::PushSeen::kMode, stamp_of(sight->st)};
  }
  return {same_mode(rough->st) ? wire::PushSeen::kSame : wire::PushSeen::kMode, stamp_of(rough->st)};
}

}  // namespace

std::vector<wire::PushDiffers> check_stamps(const Root& root, const wire::PushCheckList& list) {
  std::vector<wire::PushDiffers> out;
  Places places(root);
  for (std::size_t i = 0; i < list.paths.size(); ++i) {
    std::uint32_t stamp = 0;
    std::memcpy(&stamp, list.stamps.data() + i * wire::kPushCheckBytes, sizeof stamp);
    const auto seen = check_one(places, list.paths[i], stamp);
    if (seen != wire::PushSeen::kSame) out.push_back({static_cast<std::uint32_t>(i), seen});
  }
  return out;
}

wire::PushCompareReply compare_items(const Root& root, const wire::PushCompareList& list) {
  wire::PushCompareReply reply;
  reply.results.reserve(list.items.size());
  Places places(root);
  for (const auto& item : list.items) reply.results.push_back(compare_one(places, item));
  return reply;
}

namespace {

base::Result<void> write_at(int fd, wire::ByteView bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("write");
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

base::Result<void> copy_range(int from, std::uint64_t from_at, int to, std::uint64_t to_at,
                              std::uint64_t length) {
  std::vector<std::byte> buffer;
  while (length > 0) {
    auto in = static_cast<off64_t>(from_at);
    auto out = static_cast<off64_t>(to_at);
    ssize_t n = ::copy_file_range(from, &in, to, &out, std::min<std::uint64_t>(length, 1 << 30), 0);
    if (n < 0 && errno != EINTR) {
      buffer.resize(kReadBytes);
      n = ::pread(from, buffer.data(), std::min<std::uint64_t>(length, buffer.size()),
                  static_cast<off_t>(from_at));
      if (n < 0) return base::last_errno("copy");
      const auto read = wire::ByteView(buffer).first(static_cast<std::size_t>(n));
      if (auto done = write_at(to, read, to_at); !done) return done;
    }
    if (n == 0) return base::errno_error(ESTALE, "copy");  // the base became shorter
    if (n < 0) continue;
    from_at += static_cast<std::uint64_t>(n);
    to_at += static_cast<std::uint64_t>(n);
    length -= static_cast<std::uint64_t>(n);
  }
  return {};
}

}  // namespace

namespace {

base::Result<void> write_segments(const Root& root, int stage, const std::string& name,
                                  const wire::PushPart& part, wire::ByteView body) {
  base::UniqueFd to(
      ::openat(stage, name.c_str(), O_CREAT | O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600));
  if (!to) return base::last_errno("stage");
  base::UniqueFd from;
  for (const auto& segment : part.segments) {
    if (segment.offset > wire::kMaxPushFileSize || segment.length > wire::kMaxPushFileSize ||
        segment.from > wire::kMaxPushFileSize) {
      return base::errno_error(EINVAL, "segment");
    }
    if (!segment.copied) {
      if (segment.length > body.size()) return base::errno_error(EPROTO, "segment");
      const auto bytes = body.first(static_cast<std::size_t>(segment.length));
      if (auto done = write_at(to.get(), bytes, segment.offset); !done) return done;
      body = body.subspan(bytes.size());
      continue;
    }
    if (!from) {
      auto place = open_place(root.dir.get(), part.base);
      if (!place) return std::move(place).error();
      auto file = open_regular(*place, {}, O_RDONLY);
      if (!file) return std::move(file).error();
      from = std::move(file->fd);
    }
    if (auto done = copy_range(from.get(), segment.from, to.get(), segment.offset, segment.length); !done) {
      return done;
    }
  }
  if (!body.empty()) return base::errno_error(EPROTO, "segments");
  if (auto closed = to.close(); closed) return base::Error{closed, "close"};
  return {};
}

}  // namespace

base::Result<void> write_part(const Root& root, StageDir& stage, const wire::PushPart& part,
                              wire::ByteView body) {
  const auto name = StageDir::stage_name(part.stage);
  auto written = write_segments(root, stage.fd(), name, part, body);
  const int error = written ? 0 : written.error().as_errno();
  // What does not fit must not keep the disk full.
  if (error == ENOSPC || error == EDQUOT) (void)::unlinkat(stage.fd(), name.c_str(), 0);
  return written;
}

void answer_chunks(const Root& root, StageDir& stage, const wire::PushChunks& call,
                   channel::Responder& responder) {
  base::UniqueFd fd;
  if (call.staged) {
    fd.reset(
        ::openat(stage.fd(), StageDir::stage_name(call.stage).c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd) return responder.end(errno);
  } else {
    auto place = open_place(root.dir.get(), call.path);
    if (!place) return responder.end(place.error().as_errno());
    auto file = open_regular(*place, {}, O_RDONLY);
    if (!file) return responder.end(file.error().as_errno());
    fd = std::move(file->fd);
  }
  std::vector<std::byte> buffer(kReadBytes);
  wire::PushChunksReply reply;
  wire::Hasher hasher;
  wire::Chunker chunker;
  std::vector<wire::Chunk> found;
  const auto send = [&] {
    wire::Bytes out;
    wire::Writer writer(out);
    for (const auto& chunk : found) wire::fields(writer, wire::PushChunk{chunk.length, chunk.hash});
    found.clear();
    return out.empty() || responder.send(out);
  };
  while (true) {
    const ssize_t n = ::pread(fd.get(), buffer.data(), buffer.size(), static_cast<off_t>(reply.size));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return responder.end(errno);
    if (n == 0) break;
    const auto bytes = wire::ByteView(buffer).first(static_cast<std::size_t>(n));
    hasher.add(bytes);
    chunker.add(bytes, found);
    reply.size += bytes.size();
    if (found.size() >= kChunkBatch && !send()) return responder.end(ECANCELED);
    if (responder.cancelled()) return responder.end(ECANCELED);
  }
  chunker.finish(found);
  if (!send()) return responder.end(ECANCELED);
  reply.digest = hasher.digest();
  responder.end(0, wire::encode(reply));
}

namespace {

// The names of one directory, as records.
void list_directory(const Root& root, const std::string& path, std::uint32_t number, wire::Bytes& out) {
  auto dir = open_beneath(root.dir.get(), path, O_RDONLY | O_DIRECTORY);
  auto top = dir ? stat_fd(dir->get()) : base::Result<Stat>(base::errno_error(ENOENT));
  if (!top) return;
  DIR* const list = ::fdopendir(dir->get());
  if (list == nullptr) return;
  const int fd = dir->release();  // the stream's now
  wire::Writer writer(out);
  while (const auto* const entry = ::readdir(list)) {  // NOLINT(concurrency-mt-unsafe): a stream of our own
    const std::string_view name = entry->d_name;
    auto st = stat_at(fd, entry->d_name);
    if (name == "." || name == ".." || !st || st->st_dev != top->st_dev) continue;
    const bool known = S_ISREG(st->st_mode) || S_ISDIR(st->st_mode) || S_ISLNK(st->st_mode);
    if (!known) continue;
    const auto type = S_ISDIR(st->st_mode)   ? wire::PushType::kDirectory
                      : S_ISLNK(st->st_mode) ? wire::PushType::kSymlink
                                             : wire::PushType::kFile;
    const auto record = wire::encode(wire::PushListed{number, type, std::string(name)});
    writer.num(static_cast<std::uint32_t>(record.size()));
    out.insert(out.end(), record.begin(), record.end());
  }
  (void)::closedir(list);
}

}  // namespace

void answer_list(const Root& root, const wire::PushList& call, channel::Responder& responder) {
  wire::Bytes out;
  for (std::size_t i = 0; i < call.dirs.size(); ++i) {
    list_directory(root, call.dirs[i], static_cast<std::uint32_t>(i), out);
    for (std::size_t at = 0; at < out.size(); at += kReadBytes) {  // one directory may be large
      const auto piece = wire::ByteView(out).subspan(at, std::min(kReadBytes, out.size() - at));
      if (!responder.send(piece)) return responder.end(ECANCELED);
    }
    out.clear();
    if (responder.cancelled()) return responder.end(ECANCELED);
  }
  responder.end(0);
}

bool is_empty(const Root& root) {
  const int fd = ::openat(root.dir.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  DIR* const list = ::fdopendir(fd);
  if (list == nullptr) {
    (void)::close(fd);
    return false;
  }
  bool empty = true;
  while (empty) {
    const auto* const entry = ::readdir(list);  // NOLINT(concurrency-mt-unsafe): a stream of our own
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    empty = name == "." || name == ".." || name == ".nearbox";
  }
  (void)::closedir(list);
  return empty;
}

std::uint64_t free_bytes(const Root& root) {
  struct statvfs fs {};
  if (::fstatvfs(root.dir.get(), &fs) != 0) return 0;
  return static_cast<std::uint64_t>(fs.f_bavail) * fs.f_frsize;
}

}  // namespace nearbox::agent
