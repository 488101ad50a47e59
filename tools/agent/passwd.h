// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nearbox::agent {

// One line of /etc/passwd. Read by hand: a static program must not load NSS modules.
struct PasswdEntry {
  std::string name;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::string home = "/";
  std::string shell = "/bin/sh";
};

// Lines that are malformed (too few fields, numbers out of range, comments, NIS "+") are left out.
// At most kMaxAccounts entries.
std::vector<PasswdEntry> parse_passwd(std::string_view text);

// The first one of that name or number; nullptr: none.
const PasswdEntry* find_user(const std::vector<PasswdEntry>& all, std::string_view name);
const PasswdEntry* find_user(const std::vector<PasswdEntry>& all, std::uint32_t uid);
// The list may not be one that ends with the expression.
const PasswdEntry* find_user(std::vector<PasswdEntry>&& all, std::string_view name) = delete;
const PasswdEntry* find_user(std::vector<PasswdEntry>&& all, std::uint32_t uid) = delete;

// The groups (by number) that list `user` as a member in /etc/group's text; without the primary one.
std::vector<std::uint32_t> parse_groups_of(std::string_view text, std::string_view user);

inline constexpr std::size_t kMaxAccounts = 65536;
inline constexpr std::size_t kMaxPasswdFile = 8 * 1024 * 1024;  // bytes of /etc/passwd that are read

// The user whose environment commands get and who owns what is made.
struct Identity {
  std::string user = "root";
  std::string home = "/";
  std::string shell = "/bin/sh";
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t agent_uid = 0;  // the uid this process runs as
  std::uint32_t agent_gid = 0;
  bool known = false;  // has a line in passwd
  bool root() const { return agent_uid == 0; }
};

// Picks the sandbox user from <etc_dir>/passwd: `wanted` when not empty (nothing when it does not
// exist or this process, not being root, could not act for it); else, for root, the account named
// "user"; else the account of `euid`. Without a passwd file: that number, home "/".
std::optional<Identity> pick_identity(const std::string& etc_dir, std::string_view wanted, std::uint32_t euid,
                                      std::uint32_t egid);

}  // namespace nearbox::agent
