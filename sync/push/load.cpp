// SPDX-License-Identifier: Apache-2.0
#include "sync/push/load.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "sync/ignore/beneath.h"
#include "sync/scan/scan.h"

namespace nearbox::push {
namespace {

// Up to `data.size()` bytes; how many there were.
base::Result<std::size_t> read_full(int fd, wire::Bytes& data) {
  std::size_t have = 0;
  while (have < data.size()) {
    const ssize_t n = ::pread(fd, data.data() + have, data.size() - have, static_cast<off_t>(have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read");
    if (n == 0) break;
    have += static_cast<std::size_t>(n);
  }
  return have;
}

}  // namespace

base::Result<Loaded> load_file(int root, std::string_view path, const scan::RacyRule& racy,
                               std::uint64_t limit) {
  auto fd = ignore::open_beneath(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!fd) return std::move(fd).error();
  for (int tries = 0; tries < scan::kReadTries; ++tries) {
    Loaded loaded;
    struct stat before {};
    struct stat after {};
    const auto read_ns = racy.now_ns();
    if (::fstat(fd->get(), &before) != 0) return base::last_errno("stat");
    if (!S_ISREG(before.st_mode)) return base::errno_error(ESTALE, "read");
    const auto size = static_cast<std::uint64_t>(before.st_size);
    if (size > limit) return base::errno_error(EFBIG, "read");
    loaded.data.resize(static_cast<std::size_t>(size) + 1);  // one more: sees growth
    auto got = read_full(fd->get(), loaded.data);
    if (!got) return std::move(got).error();
    if (::fstat(fd->get(), &after) != 0) return base::last_errno("stat");
    loaded.entry.stat = scan::stat_info(before, racy);
    if (*got != size || loaded.entry.stat != scan::stat_info(after, racy) ||
        base::fault::active("push.changing", path)) {
      continue;
    }
    loaded.data.resize(static_cast<std::size_t>(size));
    loaded.entry.digest = scan::digest_of(wire::as_text(loaded.data));
    loaded.entry.racy = racy.racy(loaded.entry.stat, read_ns);
    return loaded;
  }
  return base::errno_error(EAGAIN, "read");
}

}  // namespace nearbox::push
