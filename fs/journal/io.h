// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <dirent.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

namespace nearbox::journal {

// Every system call of the journal, one function each: what they answer and how errno is set is the
// call's own manual page. Tests derive from it to make calls fail, fall short or be forgotten.
//
// Threads: any.
class Io {
 public:
  virtual ~Io() = default;

  virtual int mkdir(const char* path, mode_t mode);
  virtual int open_dir(const char* path);  // O_DIRECTORY, no symlink as last component
  virtual int openat(int dir, const char* name, int flags, mode_t mode);
  virtual int close(int fd);
  virtual int flock(int fd, int operation);
  virtual int fstat(int fd, struct stat* out);
  virtual ssize_t pwritev(int fd, const iovec* iov, int count, off_t at);
  virtual ssize_t pread(int fd, void* out, std::size_t size, off_t at);
  virtual int ftruncate(int fd, off_t size);
  virtual int fdatasync(int fd);
  virtual int fsync(int fd);  // of the directory
  virtual int renameat(int dir, const char* from, const char* to);
  virtual int unlinkat(int dir, const char* name);
  virtual DIR* fdopendir(int fd);  // takes fd where it succeeds
  virtual dirent* readdir(DIR* dir);
  virtual int closedir(DIR* dir);
  virtual ssize_t getrandom(void* out, std::size_t size);
};

// The kernel's own.
Io& system_io();

// Owns one descriptor of an Io. Move-only; not thread-safe.
class IoFd {
 public:
  IoFd() = default;
  IoFd(Io& io, int fd) : io_(&io), fd_(fd) {}
  IoFd(IoFd&& from) noexcept : io_(from.io_), fd_(from.release()) {}
  IoFd& operator=(IoFd&& from) noexcept;
  IoFd(const IoFd&) = delete;
  IoFd& operator=(const IoFd&) = delete;
  ~IoFd();

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() noexcept;

 private:
  Io* io_ = nullptr;
  int fd_ = -1;
};

}  // namespace nearbox::journal
