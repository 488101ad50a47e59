// SPDX-License-Identifier: Apache-2.0
#include "fs/journal/io.h"

#include <cstdio>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>
#include <utility>

namespace nearbox::journal {

int Io::mkdir(const char* path, mode_t mode) { return ::mkdir(path, mode); }
int Io::open_dir(const char* path) { return ::open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC); }
int Io::openat(int dir, const char* name, int flags, mode_t mode) { return ::openat(dir, name, flags, mode); }
int Io::close(int fd) { return ::close(fd); }
int Io::flock(int fd, int operation) { return ::flock(fd, operation); }
int Io::fstat(int fd, struct stat* out) { return ::fstat(fd, out); }
ssize_t Io::pwritev(int fd, const iovec* iov, int count, off_t at) { return ::pwritev(fd, iov, count, at); }
ssize_t Io::pread(int fd, void* out, std::size_t size, off_t at) { return ::pread(fd, out, size, at); }
int Io::ftruncate(int fd, off_t size) { return ::ftruncate(fd, size); }
int Io::fdatasync(int fd) { return ::fdatasync(fd); }
int Io::fsync(int fd) { return ::fsync(fd); }
int Io::renameat(int dir, const char* from, const char* to) { return ::renameat(dir, from, dir, to); }
int Io::unlinkat(int dir, const char* name) { return ::unlinkat(dir, name, 0); }
DIR* Io::fdopendir(int fd) { return ::fdopendir(fd); }
dirent* Io::readdir(DIR* dir) { return ::readdir(dir); }
int Io::closedir(DIR* dir) { return ::closedir(dir); }
ssize_t Io::getrandom(void* out, std::size_t size) { return ::getrandom(out, size, 0); }

Io& system_io() {
  static Io io;
  return io;
}

IoFd& IoFd::operator=(IoFd&& from) noexcept {
  IoFd old(std::move(*this));
  io_ = from.io_;
  fd_ = from.release();
  return *this;
}
IoFd::~IoFd() {
  if (fd_ >= 0) (void)io_->close(fd_);
}
int IoFd::release() noexcept { return std::exchange(fd_, -1); }

}  // namespace nearbox::journal
