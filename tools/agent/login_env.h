// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "client/base/result.h"
#include "tools/agent/passwd.h"

// Who a command runs as, and the environment a login would give it. Reads /etc/passwd, /etc/group
// and /etc/environment itself: the agent is a static binary, in which NSS does not work.
namespace nearbox::agent {

inline constexpr std::string_view kDefaultPath =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
inline constexpr std::size_t kMaxGroups = 1024;  // supplementary groups of a user

struct Account : PasswdEntry {
  std::vector<gid_t> groups;  // supplementary, without gid
};

// ---- pure: text in, values out ----------------------------------------------------------------

std::optional<Account> account_by_name(std::string_view passwd, std::string_view name);
std::optional<Account> account_by_uid(std::string_view passwd, uid_t uid);
// Whom a sandbox is for, seen by a root agent: "user" (the service's own name for it), else the
// lowest ordinary uid.
std::optional<Account> account_of_sandbox(std::string_view passwd);
std::vector<gid_t> groups_of(std::string_view group_file, const Account& account);
// `K=V` lines, with or without `export` and quotes, as pam_env reads them.
std::vector<std::string> environment_lines(std::string_view text);
// Sets `assignment` (K=V) in `env`, in the place of an earlier one of the same name.
void set_variable(std::vector<std::string>& env, std::string_view assignment);
std::string_view variable(const std::vector<std::string>& env, std::string_view name);

// ---- of this machine ----------------------------------------------------------------------------

// The account of that name; "" the sandbox user: ourselves unless we are root. ENOENT: no such user;
// EPERM: another one than ourselves, and we are not root.
base::Result<Account> find_account(const std::string& name);
// PATH, /etc/environment, HOME USER LOGNAME SHELL, and the agent's own E2B_* variables.
std::vector<std::string> login_environment(const Account& account);
// The contents; "" when it cannot be read or is larger than kMaxPasswdFile.
std::string read_text(const char* path);

}  // namespace nearbox::agent
