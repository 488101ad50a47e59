// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <set>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "client/base/unique_fd.h"
#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/gunzip.h"
#include "tools/sandbox_server/gzip.h"
#include "tools/sandbox_server/multipart.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

constexpr std::size_t kCopyChunk = 256 * 1024;
constexpr std::size_t kMaxParts = 100'000;
constexpr std::size_t kMaxMetadata = 4096;
constexpr std::size_t kMaxMetadataKey = 246;
using Source = MultipartReader::Source;

// A refusal with its HTTP status.
struct Refusal {
  int status = 0;  // 0: none
  std::string message;
};

Refusal refusal_of(int err, const std::string& what) {
  const std::string text = what + ": " + errno_text(err);
  if (err == ENOSPC || err == EDQUOT) return {507, text};
  if (err == ENOENT) return {404, text};
  if (err == EISDIR) return {400, text};
  return {500, text};
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string content_type_of(const std::string& name) {
  const auto dot = name.rfind('.');
  const auto extension = dot == std::string::npos ? std::string() : name.substr(dot);
  static const std::map<std::string, std::string> kTypes = {{".txt", "text/plain; charset=utf-8"},
                                                            {".html", "text/html; charset=utf-8"},
                                                            {".css", "text/css; charset=utf-8"},
                                                            {".js", "text/javascript; charset=utf-8"},
                                                            {".json", "application/json"},
                                                            {".png", "image/png"},
                                                            {".jpg", "image/jpeg"},
                                                            {".svg", "image/svg+xml"},
                                                            {".pdf", "application/pdf"},
                                                            {".xml", "text/xml; charset=utf-8"}};
  const auto found = kTypes.find(extension);
  return found == kTypes.end() ? "application/octet-stream" : found->second;
}

std::string disposition_of(const std::string& name) {
  std::string safe;
  for (const char c : name) {
    if (c == '"' || c == '\\') safe.push_back('\\');
    if (static_cast<unsigned char>(c) >= 0x20) safe.push_back(c);
  }
  return "inline; filename=\"" + safe + "\"";
}

// Sends `length` bytes of the file from `offset`; ends the connection when the file got shorter.
void send_file(Exchange& exchange, int fd, std::uint64_t offset, std::uint64_t length) {
  std::string chunk(std::min<std::uint64_t>(kCopyChunk, std::max<std::uint64_t>(length, 1)), '\0');
  while (length > 0) {
    const auto want = static_cast<std::size_t>(std::min<std::uint64_t>(chunk.size(), length));
    const auto got = ::pread(fd, chunk.data(), want, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0 || !exchange.write({chunk.data(), static_cast<std::size_t>(got)})) {
      exchange.close_after();
      return;
    }
    offset += static_cast<std::uint64_t>(got);
    length -= static_cast<std::uint64_t>(got);
  }
  (void)exchange.finish();
}

// A file compressed, without length or ranges. A read error ends the connection, so that nobody takes
// the part for the whole.
void send_gzip(Exchange& exchange, int fd, Headers headers) {
  headers.set("Content-Type", "application/octet-stream");
  headers.add("Content-Encoding", "gzip");
  if (!exchange.start(200, std::move(headers), std::nullopt, {})) return;
  Gzip gzip;
  std::string chunk(kCopyChunk, '\0');
  while (true) {
    const auto got = ::read(fd, chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      exchange.close_after();
      return;
    }
    if (got == 0) break;
    const auto data = gzip.add({chunk.data(), static_cast<std::size_t>(got)});
    if (!data.empty() && !exchange.write(data)) return;
  }
  if (exchange.write(gzip.finish())) (void)exchange.finish();
}

// Files that announce no size (those of /proc): as they come.
void send_unsized(Exchange& exchange, int fd, Headers headers) {
  std::string chunk(kCopyChunk, '\0');
  auto got = ::read(fd, chunk.data(), chunk.size());
  if (got <= 0) {
    (void)exchange.reply(200, std::move(headers), "");
    return;
  }
  if (!exchange.start(200, std::move(headers), std::nullopt)) return;
  while (got > 0) {
    if (!exchange.write({chunk.data(), static_cast<std::size_t>(got)})) return;
    got = ::read(fd, chunk.data(), chunk.size());
  }
  (void)exchange.finish();
}

bool not_modified(const RequestHead& head, std::int64_t mtime) {
  const auto since = head.headers.get("If-Modified-Since");
  const auto time = since ? parse_http_date(*since) : std::nullopt;
  return time && mtime <= *time;
}

// Whether a Range counts: an If-Range date must be the file's own.
bool range_counts(const RequestHead& head, std::int64_t mtime) {
  const auto condition = head.headers.get("If-Range");
  if (!condition) return true;
  const auto time = parse_http_date(*condition);
  return time && *time == mtime;
}

void send_sized(Exchange& exchange, int fd, const struct stat& st, Headers headers) {
  const auto size = static_cast<std::uint64_t>(st.st_size);
  headers.add("Accept-Ranges", "bytes");
  headers.add("Last-Modified", http_date(st.st_mtim.tv_sec));
  if (const auto until = exchange.head().headers.get("If-Unmodified-Since")) {
    const auto time = parse_http_date(*until);
    if (time && st.st_mtim.tv_sec > *time) return (void)exchange.reply(412, {}, "");
  }
  if (not_modified(exchange.head(), st.st_mtim.tv_sec)) {
    (void)exchange.start(304, std::move(headers), std::nullopt);
    return (void)exchange.finish();
  }
  ByteRange range;
  if (const auto wanted = exchange.head().headers.get("Range");
      wanted && range_counts(exchange.head(), st.st_mtim.tv_sec)) {
    range = parse_range(*wanted, size);
  }
  if (range.kind == ByteRange::Kind::kUnsatisfiable) {
    Headers refused;
    refused.add("Content-Range", "bytes */" + std::to_string(size));
    refused.add("Content-Type", "text/plain; charset=utf-8");
    return (void)exchange.reply(416, std::move(refused), "invalid range: failed to overlap\n");
  }
  const bool partial = range.kind == ByteRange::Kind::kRange;
  if (partial) {
    headers.add("Content-Range", "bytes " + std::to_string(range.first) + "-" +
                                     std::to_string(range.first + range.length - 1) + "/" +
                                     std::to_string(size));
  }
  const auto length = partial ? range.length : size;
  if (!exchange.start(partial ? 206 : 200, std::move(headers), length)) return;
  send_file(exchange, fd, range.first, length);
}

// The user of a /files request: the query's `username` before the one of the header.
std::optional<User> file_user(const EnvdContext& context, const std::map<std::string, std::string>& query,
                              const User& default_user) {
  const auto named = query.find("username");
  if (named == query.end() || named->second.empty()) return default_user;
  return context.users.find(named->second);
}

// Makes the missing parents of `path`, the user's.
int make_parents(const std::string& path, const Users& users, const User& user) {
  for (auto at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    const auto part = path.substr(0, at);
    if (::mkdir(part.c_str(), 0755) == 0) {
      users.own_path(part, user);
      continue;
    }
    struct stat st {};
    if (::stat(part.c_str(), &st) != 0) return errno;
    if (!S_ISDIR(st.st_mode)) return ENOTDIR;
  }
  return 0;
}

Refusal read_metadata_headers(const RequestHead& head, std::map<std::string, std::string>& out) {
  constexpr std::string_view kPrefix = "x-metadata-";
  std::size_t total = 0;
  for (const auto& [name, value] : head.headers.all()) {
    if (name.size() <= kPrefix.size() || !iequals(std::string_view(name).substr(0, kPrefix.size()), kPrefix))
      continue;
    auto key = name.substr(kPrefix.size());
    std::transform(key.begin(), key.end(), key.begin(), [](unsigned char c) { return std::tolower(c); });
    const bool printable =
        std::all_of(value.begin(), value.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
    total += key.size() + value.size();
    if (!printable || key.size() > kMaxMetadataKey || total > kMaxMetadata)
      return {400, "invalid metadata: " + key};
    out[key] = value;
  }
  return {};
}

int store_metadata(int fd, const std::string& path, const std::map<std::string, std::string>& metadata) {
  for (const auto& [key, value] : read_metadata(path)) {
    (void)value;
    if (metadata.count(key) == 0) (void)::fremovexattr(fd, ("user.e2b." + key).c_str());
  }
  for (const auto& [key, value] : metadata) {
    if (::fsetxattr(fd, ("user.e2b." + key).c_str(), value.data(), value.size(), 0) != 0) return errno;
  }
  return 0;
}

// Writes one file from `source`, in place: what was there is truncated first, as envd does it.
Refusal write_file(EnvdContext& context, const User& user, const std::string& path,
                   const std::map<std::string, std::string>& metadata, const Source& source) {
  struct stat st {};
  if (::stat(path.c_str(), &st) == 0) {
    if (S_ISDIR(st.st_mode)) return {400, "path is a directory: " + path};
    context.users.own_path(path, user);
  }
  if (const int err = make_parents(path, context.users, user); err != 0) {
    return err == ENOSPC || err == EDQUOT
               ? refusal_of(err, "make directories")
               : Refusal{500, "make directories of " + path + ": " + errno_text(err)};
  }
  // Not waiting for the reader of a FIFO: without one the open is ENXIO.
  constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  const base::UniqueFd fd(::open(path.c_str(), kFlags, 0666));
  if (!fd) {
    const int err = errno;
    return err == ENOENT ? Refusal{500, "open " + path + ": " + errno_text(err)}
                         : refusal_of(err, "open " + path);
  }
  if (const int flags = ::fcntl(fd.get(), F_GETFL); flags >= 0)
    (void)::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK);
  context.users.own(fd.get(), user);
  std::string chunk(kCopyChunk, '\0');
  while (true) {
    const auto got = source(chunk.data(), chunk.size());
    if (!got) return {500, "read body: " + got.error().message()};
    if (*got == 0) break;
    for (std::size_t done = 0; done < *got;) {
      const auto written = ::write(fd.get(), chunk.data() + done, *got - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return refusal_of(errno, "write " + path);
      done += static_cast<std::size_t>(written);
    }
  }
  if (const int err = store_metadata(fd.get(), path, metadata); err != 0 && !metadata.empty()) {
    return refusal_of(err, "store metadata of " + path);
  }
  return {};
}

nlohmann::json upload_entry(const std::string& path, const std::map<std::string, std::string>& metadata) {
  nlohmann::json out = {{"path", path}, {"name", base_name(path)}, {"type", "file"}};
  if (!metadata.empty()) out["metadata"] = metadata;
  return out;
}

// The files of a multipart body, one after another.
Refusal upload_parts(EnvdContext& context, const User& user, const std::optional<std::string>& query_path,
                     const std::map<std::string, std::string>& metadata, MultipartReader& reader,
                     nlohmann::json& out) {
  std::set<std::string> seen;
  while (true) {
    const auto part = reader.next();
    if (!part) return {500, part.error().context};
    if (!*part) return {};
    if ((*part)->name != "file") continue;
    if (seen.size() >= kMaxParts) return {400, "too many parts"};
    const auto named = query_path ? *query_path : (*part)->filename.value_or("");
    if (named.empty()) return {400, "a part has no file name"};
    const auto path = resolve_path(named, user);
    if (!path) return {400, path.error().context};
    if (!seen.insert(*path).second) return {400, "duplicate file in one upload: " + *path};
    const auto refused = write_file(context, user, *path, metadata,
                                    [&](char* data, std::size_t size) { return reader.read(data, size); });
    if (refused.status != 0) return refused;
    out.push_back(upload_entry(*path, metadata));
  }
}

Refusal upload(EnvdContext& context, Exchange& exchange, const User& default_user, nlohmann::json& out) {
  const auto& head = exchange.head();
  const auto query = parse_query(head.query);
  const auto user = file_user(context, query, default_user);
  if (!user) return {401, "unknown user"};
  std::map<std::string, std::string> metadata;
  if (auto refused = read_metadata_headers(head, metadata); refused.status != 0) return refused;
  Source source = [&](char* data, std::size_t size) { return exchange.read_body(data, size); };
  const std::string encoding(head.headers.value_or("Content-Encoding", "identity"));
  std::optional<Gunzip> gunzip;
  if (iequals(encoding, "gzip")) {
    gunzip.emplace(source);
    source = [&](char* data, std::size_t size) { return gunzip->read(data, size); };
  } else if (!iequals(encoding, "identity") && !encoding.empty()) {
    return {400, "unsupported Content-Encoding: " + encoding};
  }
  const std::string type(head.headers.value_or("Content-Type", ""));
  const auto found = query.find("path");
  const auto path =
      found == query.end() || found->second.empty() ? std::nullopt : std::optional(found->second);
  if (type.rfind("application/octet-stream", 0) == 0) {
    if (!path) return {400, "the query parameter path is missing"};
    const auto target = resolve_path(*path, *user);
    if (!target) return {400, target.error().context};
    const auto refused = write_file(context, *user, *target, metadata, source);
    if (refused.status == 0) out.push_back(upload_entry(*target, metadata));
    return refused;
  }
  const auto boundary = type.rfind("multipart/", 0) == 0 ? MultipartReader::boundary_of(type) : std::nullopt;
  if (!boundary) return {400, "unsupported Content-Type: " + type};
  MultipartReader reader(*boundary, source);
  return upload_parts(context, *user, path, metadata, reader, out);
}

}  // namespace

void serve_file_upload(EnvdContext& context, Exchange& exchange, const User& default_user) {
  auto out = nlohmann::json::array();
  const auto refused = upload(context, exchange, default_user, out);
  if (refused.status != 0) return reply_error(exchange, refused.status, refused.message);
  Headers headers;
  headers.add("Content-Type", "text/plain; charset=utf-8");
  (void)exchange.reply(200, std::move(headers),
                       out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void serve_file_download(EnvdContext& context, Exchange& exchange, const User& default_user) {
  const auto query = parse_query(exchange.head().query);
  const auto user = file_user(context, query, default_user);
  if (!user) return reply_error(exchange, 401, "unknown user");
  const auto asked = query.find("path");
  const auto path = resolve_path(asked == query.end() ? "" : asked->second, *user);
  if (!path) return reply_error(exchange, 400, path.error().context);
  // Not blocking on a FIFO that has no writer: it reads as empty instead.
  const base::UniqueFd fd(::open(path->c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) {
    const auto refused = refusal_of(errno, "path '" + *path + "'");
    return reply_error(exchange, refused.status == 507 ? 500 : refused.status, refused.message);
  }
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return reply_error(exchange, 500, "stat");
  if (S_ISDIR(st.st_mode)) return reply_error(exchange, 400, "path '" + *path + "' is a directory");
  Headers headers;
  const auto name = base_name(*path);
  headers.add("Content-Disposition", disposition_of(name));
  headers.add("Content-Type", content_type_of(name));
  headers.add("Vary", "Accept-Encoding");
  const auto& asked_headers = exchange.head().headers;
  bool identity_only = false;
  for (const char* condition : {"Range", "If-Modified-Since", "If-None-Match", "If-Range"}) {
    identity_only = identity_only || asked_headers.has(condition);
  }
  const auto encoding = encoding_of(asked_headers.value_or("Accept-Encoding", ""), identity_only);
  if (encoding == BodyEncoding::kNone) return reply_error(exchange, 406, "no acceptable encoding");
  if (encoding == BodyEncoding::kGzip && S_ISREG(st.st_mode))
    return send_gzip(exchange, fd.get(), std::move(headers));
  if (S_ISREG(st.st_mode) && st.st_size > 0) return send_sized(exchange, fd.get(), st, std::move(headers));
  send_unsized(exchange, fd.get(), std::move(headers));
}

}  // namespace nearbox::sandbox_server
