// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/proc_tree.h"

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <dirent.h>
#include <fcntl.h>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/unique_fd.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

using Listing = std::unique_ptr<DIR, int (*)(DIR*)>;
// The listening sockets of a port: the link text of their descriptors, and the user they belong to.
using Listeners = std::map<std::string, uid_t>;

// Addresses as the kernel writes them, that a connection to 127.0.0.1 reaches.
bool reached(const std::string& address) {
  return address == "00000000" || address == "0100007F" || address == std::string(32, '0') ||
         address == "0000000000000000FFFF00000100007F";
}

Listeners listeners_of(const char* table, std::uint16_t port) {
  Listeners out;
  std::ifstream in(table);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string slot, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
    words >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode;
    const auto colon = local.find(':');
    if (state != "0A" || colon == std::string::npos || inode.empty()) continue;
    unsigned number = 0;
    (void)std::from_chars(local.data() + colon + 1, local.data() + local.size(), number, 16);
    if (number == port && reached(local.substr(0, colon)))
      out["socket:[" + inode + "]"] = static_cast<uid_t>(parse_number(uid).value_or(0));
  }
  return out;
}

// Takes those out that the process holds.
void remove_held(pid_t pid, Listeners& wanted) {
  const auto path = "/proc/" + std::to_string(pid);
  const Listing fds(::opendir((path + "/fd").c_str()), ::closedir);
  if (!fds) {
    // Another user's, and we may not look (no CAP_SYS_PTRACE): then its user's listeners count as its.
    // One that hides itself appears as root's and gets nothing.
    struct stat st {};
    if (errno != EACCES || ::stat(path.c_str(), &st) != 0 || st.st_uid == 0) return;
    for (auto it = wanted.begin(); it != wanted.end();)
      it = it->second == st.st_uid ? wanted.erase(it) : std::next(it);
    return;
  }
  std::array<char, 64> link{};
  while (const auto* entry = ::readdir(fds.get())) {
    const auto size = ::readlinkat(::dirfd(fds.get()), entry->d_name, link.data(), link.size());
    if (size > 0) wanted.erase(std::string(link.data(), static_cast<std::size_t>(size)));
  }
}

}  // namespace

std::vector<pid_t> descendants_of(pid_t ancestor) {
  std::vector<std::pair<pid_t, pid_t>> parents;
  const Listing listing(::opendir("/proc"), ::closedir);
  if (!listing) return {};
  while (const auto* entry = ::readdir(listing.get())) {
    const auto pid = parse_number(entry->d_name);
    if (!pid) continue;
    const base::UniqueFd fd(
        ::open(("/proc/" + std::string(entry->d_name) + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
    std::string text(1024, '\0');
    const auto got = fd ? ::read(fd.get(), text.data(), text.size()) : -1;
    const auto name_end = got > 0 ? text.rfind(')') : std::string::npos;
    if (name_end == std::string::npos || name_end + 4 >= text.size()) continue;
    parents.emplace_back(static_cast<pid_t>(*pid),
                         static_cast<pid_t>(std::atoi(text.c_str() + name_end + 4)));
  }
  std::vector<pid_t> out{ancestor};
  for (std::size_t i = 0; i < out.size(); ++i) {
    for (const auto& [pid, parent] : parents) {
      if (parent == out[i]) out.push_back(pid);
    }
  }
  out.erase(out.begin());
  return out;
}

bool descendants_listen(pid_t ancestor, std::uint16_t port) {
  auto wanted = listeners_of("/proc/self/net/tcp", port);
  if (wanted.empty()) wanted = listeners_of("/proc/self/net/tcp6", port);
  if (wanted.empty()) return false;
  for (const auto pid : descendants_of(ancestor)) {
    remove_held(pid, wanted);
    if (wanted.empty()) return true;
  }
  return false;
}

}  // namespace nearbox::sandbox_server
