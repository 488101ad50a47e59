// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/passwd.h"

#include <charconv>

#include "tools/agent/id_map.h"
#include "tools/agent/small_file.h"

namespace nearbox::agent {
namespace {

// Takes the text up to `separator` off the front of `rest`.
std::string_view take(std::string_view& rest, char separator) {
  const auto at = rest.find(separator);
  const auto field = rest.substr(0, at);
  rest = at == std::string_view::npos ? std::string_view{} : rest.substr(at + 1);
  return field;
}

bool parse_number(std::string_view text, std::uint32_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size() && out != 0xffffffffU;
}

}  // namespace

const PasswdEntry* find_user(const std::vector<PasswdEntry>& all, std::string_view name) {
  for (const auto& entry : all) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const PasswdEntry* find_user(const std::vector<PasswdEntry>& all, std::uint32_t uid) {
  for (const auto& entry : all) {
    if (entry.uid == uid) return &entry;
  }
  return nullptr;
}

std::vector<PasswdEntry> parse_passwd(std::string_view text) {
  std::vector<PasswdEntry> all;
  while (!text.empty() && all.size() < kMaxAccounts) {
    auto line = take(text, '\n');
    PasswdEntry entry;
    entry.name = take(line, ':');
    take(line, ':');  // password
    const auto uid = take(line, ':');
    const auto gid = take(line, ':');
    take(line, ':');  // comment
    entry.home = take(line, ':');
    entry.shell = line;
    if (entry.name.empty() || entry.name[0] == '#' || entry.name[0] == '+' || entry.name[0] == '-') continue;
    if (!parse_number(uid, entry.uid) || !parse_number(gid, entry.gid)) continue;
    if (entry.home.empty() || entry.home[0] != '/') entry.home = "/";
    if (entry.shell.empty() || entry.shell[0] != '/') entry.shell = "/bin/sh";
    all.push_back(std::move(entry));
  }
  return all;
}

std::vector<std::uint32_t> parse_groups_of(std::string_view text, std::string_view user) {
  std::vector<std::uint32_t> groups;
  while (!text.empty() && groups.size() < kMaxAccounts) {
    auto line = take(text, '\n');
    take(line, ':');
    take(line, ':');
    std::uint32_t gid = 0;
    if (!parse_number(take(line, ':'), gid)) continue;
    while (!line.empty()) {
      if (take(line, ',') == user) {
        groups.push_back(gid);
        break;
      }
    }
  }
  return groups;
}

std::optional<Identity> pick_identity(const std::string& etc_dir, std::string_view wanted, std::uint32_t euid,
                                      std::uint32_t egid) {
  const auto text = read_small_file(etc_dir + "/passwd", kMaxPasswdFile);
  const auto all = parse_passwd(text ? std::string_view(*text) : std::string_view{});
  const PasswdEntry* entry = nullptr;
  if (!wanted.empty()) {
    entry = find_user(all, wanted);
    const bool is_root_by_name = entry == nullptr && wanted == "root" && euid == 0;
    if (entry == nullptr && !is_root_by_name) return std::nullopt;
    if (entry != nullptr && euid != 0 && entry->uid != euid) return std::nullopt;
  } else if (euid == 0) {
    entry = find_user(all, "user");
  }
  if (entry == nullptr) entry = find_user(all, euid);
  Identity identity;
  identity.agent_uid = euid;
  identity.agent_gid = egid;
  if (entry == nullptr) {
    identity.uid = euid;
    identity.gid = egid;
    if (euid != 0) identity.user = std::to_string(euid);
    return identity;
  }
  identity.known = true;
  identity.user = entry->name;
  identity.home = entry->home;
  identity.shell = entry->shell;
  // In a user namespace of one id that id acts for every account.
  const bool act_as = euid != 0 || other_users_exist();
  identity.uid = act_as ? entry->uid : euid;
  identity.gid = act_as ? entry->gid : egid;
  return identity;
}

}  // namespace nearbox::agent
