// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/roots.h"

#include <algorithm>
#include <array>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "tools/agent/born_as.h"
#include "tools/agent/fs_path.h"

namespace nearbox::agent {
namespace {

std::string absolute(const std::string& path, const std::string& home) {
  if (!path.empty() && path[0] == '/') return path;
  if (path.empty() || path == "~") return home;
  const std::string below = path.rfind("~/", 0) == 0 ? path.substr(2) : path;
  return home == "/" ? "/" + below : home + "/" + below;
}

// The canonical path of an open directory; `given` where /proc is not mounted.
std::string canonical(int fd, const std::string& given) {
  std::array<char, wire::kMaxPath> buffer{};
  const auto link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t n = ::readlink(link.c_str(), buffer.data(), buffer.size());
  if (n <= 0 || static_cast<std::size_t>(n) >= buffer.size() || buffer[0] != '/') return given;
  return {buffer.data(), static_cast<std::size_t>(n)};
}

}  // namespace

base::Result<void> RootTable::make_directories(const std::string& path, std::string* made) const {
  std::size_t at = 0;
  while (at < path.size()) {
    at = path.find('/', at + 1);
    if (at == std::string::npos) at = path.size();
    const auto part = path.substr(0, at);
    int made_error = 0;
    {
      const BornAs born(who_.uid, who_.gid);
      if (::mkdir(part.c_str(), 0755) != 0) made_error = errno;
    }
    if (made_error == EEXIST || made_error == EISDIR || made_error == EROFS) continue;
    if (made_error != 0) return base::errno_error(made_error, "mkdir");
    if (made != nullptr && made->empty()) *made = part;
    const base::UniqueFd fresh(::open(part.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!fresh) return base::last_errno("open");
    if (who_.root() && ::fchown(fresh.get(), who_.uid, who_.gid) != 0) return base::last_errno("chown");
    if (::fchmod(fresh.get(), 0755) != 0) return base::last_errno("chmod");
  }
  return {};
}

base::Result<wire::RootReply> RootTable::open(const wire::RootOpen& request, std::string* first_made) {
  if (request.path.find('\0') != std::string::npos) return base::errno_error(EINVAL, "root path");
  const auto path = absolute(request.path, who_.home);
  if (path.size() >= wire::kMaxPath) return base::errno_error(ENAMETOOLONG, "root path");
  if (request.create) {
    if (auto made = make_directories(path, first_made); !made) return std::move(made).error();
  }
  auto root = std::make_shared<Root>();
  root->dir.reset(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root->dir) return base::last_errno("open root");
  auto st = stat_fd(root->dir.get());
  if (!st) return std::move(st).error();
  struct statfs fs {};
  if (::fstatfs(root->dir.get(), &fs) != 0) return base::last_errno("statfs");
  root->path = canonical(root->dir.get(), path);
  root->node = node_of(*st);
  wire::RootReply reply{0, root->path, make_attr(*st), static_cast<std::uint64_t>(fs.f_type)};

  base::MutexLock lock(mu_);
  for (std::size_t i = 0; i < roots_.size(); ++i) {
    if (roots_[i]->path != root->path || !wire::same_node(roots_[i]->node, root->node)) continue;
    reply.root = static_cast<std::uint32_t>(i + 1);
    return reply;
  }
  if (roots_.size() >= kMaxRoots) return base::errno_error(EMFILE, "roots");
  roots_.push_back(std::move(root));
  reply.root = static_cast<std::uint32_t>(roots_.size());
  return reply;
}

base::Result<RootPtr> RootTable::get(std::uint32_t number) {
  base::MutexLock lock(mu_);
  if (number == 0 || number > roots_.size()) return base::errno_error(ESTALE, "root");
  return roots_[number - 1];
}

void RootTable::set_counted(const std::string& path, bool counted) {
  base::MutexLock lock(mu_);
  counted_[path] = counted;
  any_uncounted_ = std::any_of(counted_.begin(), counted_.end(), [](const auto& one) { return !one.second; });
}

bool RootTable::uncounted(std::string_view absolute) {
  if (!any_uncounted_.load(std::memory_order_relaxed)) return false;
  base::MutexLock lock(mu_);
  while (true) {
    if (const auto it = counted_.find(absolute); it != counted_.end()) return !it->second;
    const auto slash = absolute.rfind('/');
    if (slash == std::string_view::npos || absolute == "/") return false;
    absolute = absolute.substr(0, slash == 0 ? 1 : slash);
  }
}

bool RootTable::uncounted(std::uint32_t number, std::string_view path) {
  if (!any_uncounted_.load(std::memory_order_relaxed)) return false;
  const auto root = get(number);
  if (!root) return false;
  const auto& top = (*root)->path;
  if (path.empty()) return uncounted(top);
  return uncounted((top == "/" ? top : top + "/") + std::string(path));
}

}  // namespace nearbox::agent
