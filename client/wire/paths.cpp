// SPDX-License-Identifier: Apache-2.0
#include "client/wire/paths.h"

#include "client/wire/limits.h"

namespace nearbox::wire {

bool valid_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxName || name == "." || name == "..") return false;
  return name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool valid_path(std::string_view path) {
  if (path.empty()) return true;
  if (path.size() >= kMaxPath) return false;
  while (true) {
    const auto slash = path.find('/');
    if (!valid_name(path.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

}  // namespace nearbox::wire
