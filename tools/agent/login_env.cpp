// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/login_env.h"

#include <algorithm>
#include <cstdlib>
#include <unistd.h>

#include "tools/agent/small_file.h"

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

std::optional<Account> account_of(const PasswdEntry* entry) {
  if (entry == nullptr) return std::nullopt;
  return Account{*entry, {}};
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
  const auto all = parse_passwd(passwd);
  return account_of(find_user(all, name));
}

std::optional<Account> account_by_uid(std::string_view passwd, uid_t uid) {
  const auto all = parse_passwd(passwd);
  return account_of(find_user(all, uid));
}

std::optional<Account> account_of_sandbox(std::string_view passwd) {
  const auto all = parse_passwd(passwd);
  if (const auto* user = find_user(all, "user")) return account_of(user);
  const PasswdEntry* lowest = nullptr;
  for (const auto& entry : all) {
    const bool ordinary = entry.uid >= kFirstOrdinaryUid && entry.uid < kNobody;
    if (ordinary && (lowest == nullptr || entry.uid < lowest->uid)) lowest = &entry;
  }
  return account_of(lowest);
}

std::vector<gid_t> groups_of(std::string_view group_file, const Account& account) {
  auto groups = parse_groups_of(group_file, account.name);
  std::erase(groups, account.gid);
  if (groups.size() > kMaxGroups) groups.resize(kMaxGroups);
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
  account->groups = groups_of(read_text("/etc/group"), *account);
  return std::move(*account);
}

std::vector<std::string> login_environment(const Account& account) {
  std::vector<std::string> env{"PATH=" + std::string(kDefaultPath)};
  for (const auto& entry : environment_lines(read_text("/etc/environment"))) set_variable(env, entry);
  set_variable(env, "HOME=" + account.home);
  set_variable(env, "USER=" + account.name);
  set_variable(env, "LOGNAME=" + account.name);
  set_variable(env, "SHELL=" + account.shell);
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view view(*entry);
    if (view.starts_with("E2B_") && view.find('=') != std::string_view::npos) set_variable(env, view);
  }
  return env;
}

std::string read_text(const char* path) { return read_small_file(path, kMaxPasswdFile).value_or(""); }

}  // namespace nearbox::agent
