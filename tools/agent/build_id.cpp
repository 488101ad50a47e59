// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/build_id.h"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <unistd.h>
#include <vector>

#include <nettle/sha2.h>

#include "client/base/unique_fd.h"

namespace nearbox::agent {
namespace {
constexpr std::size_t kHashBytes = 8;
constexpr std::size_t kBuffer = 256 * 1024;
}  // namespace

std::string content_hash(const char* path) {
  const base::UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
  if (!fd) return {};
  struct sha256_ctx hash {};
  nettle_sha256_init(&hash);
  std::vector<std::uint8_t> buffer(kBuffer);
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {};
    if (n == 0) break;
    nettle_sha256_update(&hash, static_cast<std::size_t>(n), buffer.data());
  }
  std::array<std::uint8_t, kHashBytes> digest{};
  nettle_sha256_digest(&hash, digest.size(), digest.data());
  std::string text;
  for (const auto byte : digest) {
    text.push_back("0123456789abcdef"[byte >> 4U]);
    text.push_back("0123456789abcdef"[byte & 15U]);
  }
  return text;
}

std::string build_id() {
  auto id = content_hash("/proc/self/exe");
  return id.empty() ? "v" NEARBOX_VERSION : id;
}

}  // namespace nearbox::agent
