// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/users.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/unique_fd.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

// The fields of each line of a file such as /etc/passwd.
std::vector<std::vector<std::string>> read_table(const char* path) {
  constexpr std::size_t kMaxTable = 4 * 1024 * 1024;
  const base::UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
  std::string text;
  std::string chunk(64 * 1024, '\0');
  while (fd && text.size() < kMaxTable) {
    const auto got = ::read(fd.get(), chunk.data(), chunk.size());
    if (got <= 0) break;
    text.append(chunk.data(), static_cast<std::size_t>(got));
  }
  std::vector<std::vector<std::string>> out;
  std::vector<std::string> fields(1);
  for (const char c : text) {
    if (c == '\n') {
      out.push_back(std::move(fields));
      fields.assign(1, {});
    } else if (c == ':') {
      fields.emplace_back();
    } else {
      fields.back().push_back(c);
    }
  }
  return out;
}

bool lists(std::string_view members, std::string_view name) {
  while (!members.empty()) {
    const auto comma = members.find(',');
    if (members.substr(0, comma) == name) return true;
    if (comma == std::string_view::npos) return false;
    members.remove_prefix(comma + 1);
  }
  return false;
}

}  // namespace

std::optional<User> Users::find(std::string_view name) const {
  if (mode_ == IsolationMode::kPlain) {
    if (name != kUserName && name != "root") return std::nullopt;
    return User{std::string(name), ::geteuid(), ::getegid(), plain_home_, {}, false, false};
  }
  if (mode_ == IsolationMode::kUserns) {
    if (name == "root") return User{"root", 0, 0, "/root", {}, false, false};
    if (name == kUserName) {
      return User{std::string(name), kUserUid, kUserUid, std::string(kUserHome), {}, false, true};
    }
    return std::nullopt;
  }
  std::optional<User> user;
  for (const auto& fields : read_table("/etc/passwd")) {
    if (fields.size() < 7 || fields[0] != name) continue;
    const auto uid = parse_number(fields[2]);
    const auto gid = parse_number(fields[3]);
    if (!uid || !gid) return std::nullopt;
    user = User{fields[0], static_cast<uid_t>(*uid), static_cast<gid_t>(*gid), fields[5], {}, true, false};
    break;
  }
  if (!user) return std::nullopt;
  user->groups.push_back(user->gid);
  for (const auto& fields : read_table("/etc/group")) {
    if (fields.size() < 4 || !lists(fields[3], name)) continue;
    if (const auto gid = parse_number(fields[2])) user->groups.push_back(static_cast<gid_t>(*gid));
  }
  return user;
}

void Users::own(int fd, const User& user) const {
  if (mode_ == IsolationMode::kRoot) (void)!::fchown(fd, user.uid, user.gid);
}

void Users::own_path(const std::string& path, const User& user) const {
  if (mode_ == IsolationMode::kRoot) (void)!::lchown(path.c_str(), user.uid, user.gid);
}

IdNames::IdNames(IsolationMode mode) {
  for (const auto& fields : read_table("/etc/passwd")) {
    const auto id = fields.size() > 2 ? parse_number(fields[2]) : std::nullopt;
    if (id) users_.emplace(static_cast<unsigned>(*id), fields[0]);
  }
  for (const auto& fields : read_table("/etc/group")) {
    const auto id = fields.size() > 2 ? parse_number(fields[2]) : std::nullopt;
    if (id) groups_.emplace(static_cast<unsigned>(*id), fields[0]);
  }
  // The one mapped user is both root and the sandbox's user; what it owns is shown as the user's.
  const auto own = mode == IsolationMode::kPlain ? ::geteuid() : 0;
  if (mode != IsolationMode::kRoot) {
    users_[own] = std::string(kUserName);
    groups_[mode == IsolationMode::kPlain ? ::getegid() : 0] = std::string(kUserName);
  }
}

std::string IdNames::name(const std::map<unsigned, std::string>& names, unsigned id) {
  const auto found = names.find(id);
  return found == names.end() ? std::to_string(id) : found->second;
}

base::Result<std::string> resolve_path(std::string_view path, const User& user) {
  if (path.find('\0') != std::string_view::npos) return base::errno_error(EINVAL, "path has a NUL byte");
  if (path.empty() || path == "~") return user.home;
  if (path.front() == '/') return std::string(path);
  if (path.front() == '~') {
    if (path[1] != '/') return base::errno_error(EINVAL, "cannot resolve the home of another user");
    return user.home + std::string(path.substr(1));
  }
  return user.home + "/" + std::string(path);
}

}  // namespace nearbox::sandbox_server
