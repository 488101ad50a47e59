// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace nearbox::base {

// Owns one file descriptor. Move-only; not thread-safe.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& from) noexcept : fd_(from.release()) {}
  UniqueFd& operator=(UniqueFd&& from) noexcept {
    UniqueFd old(std::exchange(fd_, from.release()));
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { (void)close(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }
  void reset(int fd = -1) noexcept { *this = UniqueFd(fd); }

  // Writers call this and look: ENOSPC, EDQUOT and EIO may show up only here. Not repeated on
  // EINTR: Linux has freed the number already (close(2)).
  [[nodiscard]] std::error_code close() noexcept {
    if (fd_ < 0 || ::close(release()) == 0) return {};
    return {errno, std::generic_category()};
  }

 private:
  int fd_;
};

}  // namespace nearbox::base
