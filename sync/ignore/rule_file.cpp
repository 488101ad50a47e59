// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/rule_file.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

namespace nearbox::ignore {
namespace {

std::int64_t nanoseconds(const timespec& t) {
  return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

}  // namespace

Signature signature_of(const struct stat& st) {
  return {st.st_dev, st.st_ino, st.st_size, nanoseconds(st.st_mtim), nanoseconds(st.st_ctim)};
}

base::Result<FileText> read_file_at(int dir, const std::string& name, std::size_t limit, Symlink symlink) {
  // O_NONBLOCK: the name may be a pipe's, whose open waits for a writer.
  const int flags =
      O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (symlink == Symlink::kRefuse ? O_NOFOLLOW : 0);
  const base::UniqueFd fd(::openat(dir, name.c_str(), flags));
  if (!fd) return base::last_errno("open " + name);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return base::last_errno("stat " + name);
  if (!S_ISREG(st.st_mode)) return base::errno_error(EINVAL, name + " is no regular file");
  if (static_cast<std::uint64_t>(st.st_size) > limit) {
    return base::errno_error(EFBIG, name + " is larger than " + std::to_string(limit) + " bytes");
  }
  FileText file;
  file.signature = signature_of(st);
  std::size_t filled = 0;
  file.bytes.resize(static_cast<std::size_t>(st.st_size) + 1);  // one more: the end is seen by a short read
  while (true) {
    const ssize_t n = ::read(fd.get(), file.bytes.data() + filled, file.bytes.size() - filled);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read " + name);
    if (n == 0) break;
    filled += static_cast<std::size_t>(n);
    if (filled > limit)
      return base::errno_error(EFBIG, name + " is larger than " + std::to_string(limit) + " bytes");
    if (filled == file.bytes.size()) file.bytes.resize(file.bytes.size() * 2);
  }
  file.bytes.resize(filled);
  return file;
}

Signature look_at(int dir, const std::string& name, Symlink symlink) {
  struct stat st {};
  if (::fstatat(dir, name.c_str(), &st, symlink == Symlink::kRefuse ? AT_SYMLINK_NOFOLLOW : 0) != 0)
    return {};
  return signature_of(st);
}

}  // namespace nearbox::ignore
