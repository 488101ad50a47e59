// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/xattrs.h"

#include <fcntl.h>
#include <string_view>
#include <sys/xattr.h>

namespace nearbox::agent {

bool user_xattr(const std::string& name) {
  return name.rfind("user.", 0) == 0 && name.size() > 5 && name.find('\0') == std::string::npos;
}

base::Result<base::UniqueFd> open_for_xattr(const Place& place, wire::NodeId expect) {
  auto st = stat_place(place, expect);
  if (!st) return std::move(st).error();
  if (!S_ISREG(st->st_mode) && !S_ISDIR(st->st_mode)) return base::errno_error(EPERM, "xattr");
  const int flags = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  base::UniqueFd fd(::openat(place.dir.get(), place.name.c_str(), O_RDONLY | flags));
  if (!fd && errno == EACCES) fd.reset(::openat(place.dir.get(), place.name.c_str(), O_WRONLY | flags));
  if (!fd) return base::last_errno("open");
  auto now = stat_fd(fd.get());
  if (!now) return std::move(now).error();
  if (!wire::same_node(node_of(*now), node_of(*st))) return base::errno_error(ESTALE, "xattr");
  return fd;
}

base::Result<wire::Bytes> get_xattr(int fd, const std::string& name) {
  if (!user_xattr(name)) return base::errno_error(ENODATA, "xattr name");
  wire::Bytes value(wire::kMaxXattrBytes);
  const ssize_t n = ::fgetxattr(fd, name.c_str(), value.data(), value.size());
  if (n < 0) return base::last_errno("getxattr");
  value.resize(static_cast<std::size_t>(n));
  return value;
}

base::Result<wire::Bytes> list_xattrs(int fd) {
  std::string names(wire::kMaxXattrBytes, '\0');
  const ssize_t n = ::flistxattr(fd, names.data(), names.size());
  if (n < 0 && errno == EOPNOTSUPP) return wire::Bytes{};
  if (n < 0) return base::last_errno("listxattr");
  wire::Bytes out;
  std::string_view rest(names.data(), static_cast<std::size_t>(n));
  while (!rest.empty()) {
    const auto name = rest.substr(0, rest.find('\0'));
    if (user_xattr(std::string(name))) {
      const auto bytes = wire::as_view(name);
      out.insert(out.end(), bytes.begin(), bytes.end());
      out.push_back(std::byte{0});
    }
    if (name.size() >= rest.size()) break;
    rest.remove_prefix(name.size() + 1);
  }
  return out;
}

}  // namespace nearbox::agent
