// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/login_env.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

namespace nearbox::agent {
namespace {

constexpr uid_t kFirstOrdinaryUid = 1000;
constexpr uid_t kNobody = 65534;

// Takes what lies before the next `separator` (or all) off the front of `text`.
std::string_view take(std::string_view& text, char separator) {
  const auto at = text.find(separator);
  const auto part = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return part;
}

std::optional<std::uint32_t> number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

std::optional<Account> parse_line(std::string_view line) {
  Account account;
  account.name = take(line, ':');
  take(line, ':');  // password
  const auto uid = number(take(line, ':'));
  const auto gid = number(take(line, ':'));
  take(line, ':');  // comment
  account.home = take(line, ':');
  account.shell = take(line, ':');
  if (account.name.empty() || !uid || !gid) return std::nullopt;
  account.uid = *uid;
  account.gid = *gid;
  return account;
}

template <class Fn>
void each_account(std::string_view passwd, Fn fn) {
  while (!passwd.empty()) {
    if (auto account = parse_line(take(passwd, '\n'))) {
      if (fn(*account)) return;
    }
  }
}

template <class Predicate>
std::optional<Account> first_account(std::string_view passwd, Predicate predicate) {
  std::optional<Account> found;
  each_account(passwd, [&](Account& account) {
    if (!predicate(account)) return false;
    found = std::move(account);
    return true;
  });
  return found;
}

// A user that no file knows: an empty chroot, or a container run with a bare uid.
Account unlisted_account(uid_t uid, gid_t gid) {
  const char* home = std::getenv("HOME");
  const char* user = std::getenv("USER");
  Account account;
  account.uid = uid;
  account.gid = gid;
  account.name = user != nullptr && *user != '\0' ? user : uid == 0 ? "root" : "user";
  account.home = home != nullptr && *home == '/' ? home : "/";
  return account;
}

}  // namespace

std::optional<Account> account_by_name(std::string_view passwd, std::string_view name) {
  return first_account(passwd, [&](const Account& a) { return a.name == name; });
}

std::optional<Account> account_by_uid(std::string_view passwd, uid_t uid) {
  return first_account(passwd, [&](const Account& a) { return a.uid == uid; });
}

std::optional<Account> account_of_sandbox(std::string_view passwd) {
  if (auto user = account_by_name(passwd, "user")) return user;
  std::optional<Account> lowest;
  each_account(passwd, [&](Account& account) {
    if (account.uid >= kFirstOrdinaryUid && account.uid < kNobody && (!lowest || account.uid < lowest->uid)) {
      lowest = std::move(account);
    }
    return false;
  });
  return lowest;
}

std::vector<gid_t> groups_of(std::string_view group_file, const Account& account) {
  std::vector<gid_t> groups;
  while (!group_file.empty() && groups.size() < kMaxGroups) {
    auto line = take(group_file, '\n');
    take(line, ':');  // name
    take(line, ':');  // password
    const auto gid = number(take(line, ':'));
    if (!gid || *gid == account.gid) continue;
    while (!line.empty()) {
      if (take(line, ',') != account.name) continue;
      groups.push_back(*gid);
      break;
    }
  }
  return groups;
}

std::vector<std::string> environment_lines(std::string_view text) {
  std::vector<std::string> env;
  while (!text.empty()) {
    auto line = take(text, '\n');
    while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
    while (!line.empty() && (line.back() == ' ' || line.back() == '\t' || line.back() == '\r')) {
      line.remove_suffix(1);
    }
    if (line.starts_with("export ")) line.remove_prefix(7);
    const auto equals = line.find('=');
    if (line.starts_with('#') || equals == 0 || equals == std::string_view::npos) continue;
    auto value = line.substr(equals + 1);
    if (value.size() >= 2 && value.front() == value.back() &&
        (value.front() == '"' || value.front() == '\'')) {
      value = value.substr(1, value.size() - 2);
    }
    set_variable(env, std::string(line.substr(0, equals + 1)) + std::string(value));
  }
  return env;
}

void set_variable(std::vector<std::string>& env, std::string_view assignment) {
  const auto prefix = assignment.substr(0, assignment.find('=') + 1);
  const auto same =
      std::find_if(env.begin(), env.end(), [&](const std::string& e) { return e.starts_with(prefix); });
  if (same == env.end()) {
    env.emplace_back(assignment);
  } else {
    *same = assignment;
  }
}

std::string_view variable(const std::vector<std::string>& env, std::string_view name) {
  for (const auto& entry : env) {
    const std::string_view view(entry);
    if (view.starts_with(name) && view.substr(name.size()).starts_with('=')) {
      return view.substr(name.size() + 1);
    }
  }
  return {};
}

base::Result<Account> find_account(const std::string& name) {
  const std::string passwd = read_text("/etc/passwd");
  const uid_t self = geteuid();
  std::optional<Account> account;
  if (!name.empty()) {
    account = account_by_name(passwd, name);
    if (!account) return base::errno_error(ENOENT, "no such user: " + name);
  } else {
    if (self == 0) account = account_of_sandbox(passwd);
    if (!account) account = account_by_uid(passwd, self);
    if (!account) account = unlisted_account(self, getegid());
  }
  if (self != 0 && account->uid != self) {
    return base::errno_error(EPERM, "the agent is not root and cannot run commands as " + account->name);
  }
  if (account->home.empty()) account->home = "/";
  account->groups = groups_of(read_text("/etc/group"), *account);
  return std::move(*account);
}

std::vector<std::string> login_environment(const Account& account) {
  std::vector<std::string> env{"PATH=" + std::string(kDefaultPath)};
  for (const auto& entry : environment_lines(read_text("/etc/environment"))) set_variable(env, entry);
  set_variable(env, "HOME=" + account.home);
  set_variable(env, "USER=" + account.name);
  set_variable(env, "LOGNAME=" + account.name);
  set_variable(env, "SHELL=" + (account.shell.empty() ? "/bin/sh" : account.shell));
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view view(*entry);
    if (view.starts_with("E2B_") && view.find('=') != std::string_view::npos) set_variable(env, view);
  }
  return env;
}

std::string read_text(const char* path) {
  std::string text;
  const base::UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return text;
  std::array<char, 4096> buffer;
  while (text.size() < kMaxAccountFile) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return text;
}

}  // namespace nearbox::agent
