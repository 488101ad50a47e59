// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

namespace nearbox::agent {

std::optional<std::string> read_small_file(const std::string& path, std::size_t limit) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return std::nullopt;
  std::string text;
  char buffer[16384];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return std::nullopt;
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > limit) return std::nullopt;
  }
}

bool write_kernel_file(const char* path, const std::string& text) {
  const base::UniqueFd fd(::open(path, O_WRONLY | O_CLOEXEC));
  if (!fd) return false;
  const ssize_t n = ::write(fd.get(), text.data(), text.size());
  return n >= 0 && static_cast<std::size_t>(n) == text.size();
}

}  // namespace nearbox::agent
