// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/beneath.h"

#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/base/fault.h"

namespace nearbox::ignore {
namespace {

using base::UniqueFd;

// Without openat2 a mount shows by its device number.
base::Result<UniqueFd> open_by_component(int root, const std::string& path, int flags) {
  struct stat top {};
  if (::fstat(root, &top) != 0) return base::last_errno("stat");
  UniqueFd holder;
  int at = root;
  std::size_t from = 0;
  while (true) {
    const auto slash = path.find('/', from);
    const bool last = slash == std::string::npos;
    const auto name = path.substr(from, last ? slash : slash - from);
    const int how = last ? flags | O_NOFOLLOW | O_CLOEXEC : O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    UniqueFd next(::openat(at, name.c_str(), how));
    // With O_DIRECTORY the kernel says ENOTDIR of a symlink.
    if (!next) return base::last_errno("open");
    struct stat st {};
    if (::fstat(next.get(), &st) != 0) return base::last_errno("stat");
    if (S_ISDIR(st.st_mode) && st.st_dev != top.st_dev) return base::errno_error(EXDEV, "open");
    if (last) return next;
    holder = std::move(next);
    at = holder.get();
    from = slash + 1;
  }
}

}  // namespace

base::Result<UniqueFd> open_beneath(int root, std::string_view path, int flags) {
  static std::atomic<bool> missing{false};
  const std::string name = path.empty() ? "." : std::string(path);
  if (!missing.load(std::memory_order_relaxed) && !base::fault::active("scan.no_openat2")) {
    open_how how{};
    how.flags = static_cast<unsigned>(flags) | O_CLOEXEC | O_NOFOLLOW;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
    for (int tries = 0; tries < 4; ++tries) {
      const long fd = ::syscall(SYS_openat2, root, name.c_str(), &how, sizeof how);
      if (fd >= 0) return UniqueFd(static_cast<int>(fd));
      if (errno != EAGAIN) break;  // a rename crossed our way: it may have gone well all the same
    }
    if (errno != ENOSYS && errno != EPERM) return base::last_errno("open");
    if (errno == ENOSYS) missing.store(true, std::memory_order_relaxed);
  }
  return open_by_component(root, name, flags);
}

}  // namespace nearbox::ignore
