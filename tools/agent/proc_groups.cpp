// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_groups.h"

#include <charconv>
#include <dirent.h>
#include <memory>
#include <string>

#include "tools/agent/login_env.h"

namespace nearbox::agent {

// "PID (NAME) STATE PPID PGRP …"; the name may hold anything, so look from its last parenthesis.
// Source: proc(5).
pid_t live_group_of(std::string_view line) {
  const auto paren = line.rfind(')');
  if (paren == std::string_view::npos || line.size() < paren + 5) return 0;
  const char state = line[paren + 2];
  if (state == 'Z' || state == 'X') return 0;
  const auto space = line.find(' ', paren + 4);
  if (space == std::string_view::npos) return 0;
  pid_t group = 0;
  std::from_chars(line.data() + space + 1, line.data() + line.size(), group);
  return group;
}

bool any_group_alive(const std::set<pid_t>& groups) {
  if (groups.empty()) return false;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir("/proc"), ::closedir);
  if (!dir) return true;
  bool any_process = false;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
    any_process = true;
    const std::string path = std::string("/proc/") + entry->d_name + "/stat";
    if (groups.contains(live_group_of(read_text(path.c_str())))) return true;
  }
  return !any_process;
}

}  // namespace nearbox::agent
