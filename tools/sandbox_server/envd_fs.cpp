// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <climits>

#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

namespace stdfs = std::filesystem;

std::string base_name(const std::string& path) {
  auto end = path.find_last_not_of('/');
  if (end == std::string::npos) return "/";
  const auto slash = path.rfind('/', end);
  return path.substr(slash == std::string::npos ? 0 : slash + 1,
                     end - (slash == std::string::npos ? 0 : slash + 1) + 1);
}

const char* type_of(mode_t mode) {
  if (S_ISREG(mode)) return "FILE_TYPE_FILE";
  if (S_ISDIR(mode)) return "FILE_TYPE_DIRECTORY";
  return "FILE_TYPE_UNSPECIFIED";
}

// The mode as Go's fs.FileMode prints it.
std::string permission_text(mode_t mode) {
  std::string out;
  if (S_ISDIR(mode)) out += 'd';
  if (S_ISLNK(mode)) out += 'L';
  if (S_ISBLK(mode)) out += 'D';
  if (S_ISFIFO(mode)) out += 'p';
  if (S_ISSOCK(mode)) out += 'S';
  if ((mode & S_ISUID) != 0) out += 'u';
  if ((mode & S_ISGID) != 0) out += 'g';
  if (S_ISCHR(mode)) out += "Dc";
  if ((mode & S_ISVTX) != 0) out += 't';
  if (out.empty()) out = "-";
  constexpr std::string_view kBits = "rwxrwxrwx";
  for (std::size_t i = 0; i < kBits.size(); ++i) out += (mode & (0400U >> i)) != 0 ? kBits[i] : '-';
  return out;
}

base::Result<nlohmann::json> entry_info(const std::string& path, const IdNames& names) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return base::last_errno("stat");
  nlohmann::json out = {{"name", base_name(path)},
                        {"type", type_of(st.st_mode)},
                        {"path", path},
                        {"size", std::to_string(st.st_size)},
                        {"mode", st.st_mode & 0777U},
                        {"permissions", permission_text(st.st_mode)},
                        {"owner", names.user(st.st_uid)},
                        {"group", names.group(st.st_gid)}};
  if (st.st_mtim.tv_sec != 0) out["modifiedTime"] = rfc3339(st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
  if (S_ISLNK(st.st_mode)) {
    struct stat target {};
    const bool dangling = ::stat(path.c_str(), &target) != 0;
    out["type"] = dangling ? "FILE_TYPE_UNSPECIFIED" : type_of(target.st_mode);
    out["mode"] = dangling ? 0U : target.st_mode & 0777U;
    const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), ::free);
    out["symlinkTarget"] = real ? std::string(real.get()) : path;
  }
  if (S_ISREG(st.st_mode)) {
    if (const auto metadata = read_metadata(path); !metadata.empty()) out["metadata"] = metadata;
  }
  return out;
}

RpcReply from_errno(int err, const std::string& what) {
  const std::string message = what + ": " + errno_text(err);
  if (err == ENOENT) return RpcReply::error("not_found", message);
  if (err == EINVAL) return RpcReply::error("invalid_argument", message);
  return RpcReply::error("internal", message);
}

RpcReply entry_reply(const std::string& path, const Users& users) {
  auto entry = entry_info(path, IdNames(users.mode()));
  if (!entry) return from_errno(entry.error().as_errno(), "stat " + path);
  RpcReply reply;
  reply.body["entry"] = std::move(*entry);
  return reply;
}

// Makes each missing directory of `path`, 0755 and the user's.
int make_directories(const std::string& path, const Users& users, const User& user) {
  for (std::size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
    const auto part = path.substr(0, at);
    if (::mkdir(part.c_str(), 0755) == 0) {
      (void)::chmod(part.c_str(), 0755);
      users.own_path(part, user);
    } else if (errno == EEXIST || errno == EISDIR || errno == EROFS) {
      struct stat st {};
      if (::stat(part.c_str(), &st) != 0) return errno;
      if (!S_ISDIR(st.st_mode)) return ENOTDIR;
    } else {
      return errno;
    }
    if (at == std::string::npos) return 0;
  }
}

RpcReply make_dir(const std::string& path, const Users& users, const User& user) {
  struct stat st {};
  if (::stat(path.c_str(), &st) == 0) {
    if (S_ISDIR(st.st_mode)) return RpcReply::error("already_exists", "directory already exists: " + path);
    return RpcReply::error("invalid_argument", "path exists but is not a directory: " + path);
  }
  if (const int err = make_directories(path, users, user); err != 0) {
    return RpcReply::error("internal", "make directory " + path + ": " + errno_text(err));
  }
  return entry_reply(path, users);
}

RpcReply move(const std::string& source, const std::string& destination, const Users& users,
              const User& user) {
  const auto parent = stdfs::path(destination).parent_path().string();
  if (!parent.empty() && parent != "/") {
    if (const int err = make_directories(parent, users, user); err != 0) {
      return RpcReply::error("internal", "make directory " + parent + ": " + errno_text(err));
    }
  }
  if (::rename(source.c_str(), destination.c_str()) != 0) {
    const int err = errno;
    return err == EINVAL ? RpcReply::error("internal", "rename: " + errno_text(err))
                         : from_errno(err, "rename " + source);
  }
  return entry_reply(destination, users);
}

// Appends what lies below `directory`, depth first, in order of names.
int list_into(const std::string& directory, const std::string& shown, std::uint32_t depth,
              const IdNames& names, nlohmann::json& out) {
  std::error_code ec;
  std::vector<std::string> children;
  for (auto it = stdfs::directory_iterator(directory, ec); !ec && it != stdfs::directory_iterator();
       it.increment(ec)) {
    children.push_back(it->path().filename().string());
  }
  if (ec) return ec.value();
  std::sort(children.begin(), children.end());
  for (const auto& child : children) {
    if (out.size() >= kMaxListEntries) return E2BIG;
    const auto path = directory == "/" ? "/" + child : directory + "/" + child;
    const auto shown_path = shown == "/" ? "/" + child : shown + "/" + child;
    auto entry = entry_info(path, names);
    if (!entry) {
      if (entry.error().as_errno() == ENOENT) continue;
      return entry.error().as_errno();
    }
    (*entry)["path"] = shown_path;
    const bool descend = depth > 1 && (*entry)["permissions"].get_ref<const std::string&>().front() == 'd';
    out.push_back(std::move(*entry));
    if (!descend) continue;
    const int err = list_into(path, shown_path, depth - 1, names, out);
    if (err != 0 && err != ENOENT) return err;
  }
  return 0;
}

RpcReply list_dir(const std::string& requested, std::uint32_t depth, const Users& users) {
  auto path = requested;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) {
    if (errno == ELOOP) return RpcReply::error("failed_precondition", "too many symbolic links: " + path);
    return from_errno(errno, "list " + path);
  }
  if (!S_ISDIR(st.st_mode)) return RpcReply::error("invalid_argument", "path is not a directory: " + path);
  const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr), ::free);
  if (!real) return from_errno(errno, "list " + path);
  RpcReply reply;
  auto& entries = reply.body["entries"] = nlohmann::json::array();
  const int err = list_into(real.get(), path, std::max(depth, 1U), IdNames(users.mode()), entries);
  if (err == E2BIG) return RpcReply::error("resource_exhausted", "too many entries below " + path);
  if (err != 0) return RpcReply::error("internal", "list " + path + ": " + errno_text(err));
  if (entries.empty()) reply.body.erase("entries");
  return reply;
}

RpcReply remove_path(const std::string& path) {
  const auto slim = stdfs::path(path).lexically_normal();
  if (slim == "/") return RpcReply::error("invalid_argument", "will not remove /");
  std::error_code ec;
  (void)stdfs::remove_all(path, ec);
  if (ec && ec.value() != ENOENT) return RpcReply::error("internal", "remove " + path + ": " + ec.message());
  return {};
}

}  // namespace

std::map<std::string, std::string> read_metadata(const std::string& path) {
  constexpr std::string_view kPrefix = "user.e2b.";
  std::array<char, 8192> names{};
  std::map<std::string, std::string> out;
  const auto size = ::llistxattr(path.c_str(), names.data(), names.size());
  for (ssize_t at = 0; at < size;) {
    const std::string name(names.data() + at);
    at += static_cast<ssize_t>(name.size()) + 1;
    if (name.rfind(kPrefix, 0) != 0) continue;
    std::array<char, 4097> value{};
    const auto got = ::lgetxattr(path.c_str(), name.c_str(), value.data(), value.size() - 1);
    if (got < 0) continue;
    const std::string text(value.data(), static_cast<std::size_t>(got));
    const bool printable =
        std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
    if (printable) out.emplace(name.substr(kPrefix.size()), text);
  }
  return out;
}

std::optional<nlohmann::json> entry_of(const std::string& path, const IdNames& names) {
  auto entry = entry_info(path, names);
  if (!entry) return std::nullopt;
  return std::move(*entry);
}

RpcReply filesystem_call(EnvdContext& context, const User& user, std::string_view method,
                         const nlohmann::json& request) {
  const auto path_of = [&](const char* key) { return resolve_path(request.value(key, std::string()), user); };
  if (method == "Move") {
    const auto source = path_of("source");
    const auto destination = path_of("destination");
    if (!source) return RpcReply::error("invalid_argument", source.error().context);
    if (!destination) return RpcReply::error("invalid_argument", destination.error().context);
    return move(*source, *destination, context.users, user);
  }
  if (method.find("Watcher") != std::string_view::npos) return watcher_call(context, user, method, request);
  const auto path = path_of("path");
  if (!path) return RpcReply::error("invalid_argument", path.error().context);
  if (method == "Stat") return entry_reply(*path, context.users);
  if (method == "MakeDir") return make_dir(*path, context.users, user);
  if (method == "ListDir") return list_dir(*path, request.value("depth", 1U), context.users);
  if (method == "Remove") return remove_path(*path);
  return RpcReply::error("unimplemented", "unknown method");
}

}  // namespace nearbox::sandbox_server
