// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/id_map.h"

#include <charconv>
#include <fcntl.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

namespace nearbox::agent {

std::uint64_t mapped_ids(std::string_view uid_map) {
  std::uint64_t total = 0;
  while (!uid_map.empty()) {
    const auto end = uid_map.find('\n');
    auto line = uid_map.substr(0, end);
    uid_map.remove_prefix(end == std::string_view::npos ? uid_map.size() : end + 1);
    while (!line.empty() && line.back() == ' ') line.remove_suffix(1);
    const auto space = line.rfind(' ');
    if (space == std::string_view::npos) continue;
    std::uint32_t count = 0;
    const char* const last = line.data() + line.size();
    const auto parsed = std::from_chars(line.data() + space + 1, last, count);
    if (parsed.ec == std::errc{} && parsed.ptr == last) total += count;
  }
  return total;
}

bool other_users_exist() {
  const base::UniqueFd fd(::open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC));
  if (!fd) return true;  // no /proc: the usual case is no user namespace
  char text[4096];
  const ssize_t n = ::read(fd.get(), text, sizeof text);
  if (n <= 0) return true;
  return mapped_ids({text, static_cast<std::size_t>(n)}) > 1;
}

}  // namespace nearbox::agent
