// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <nettle/sha2.h>

#include "client/api/error_code.h"
#include "client/base/unique_fd.h"
#include "tools/daemon/dialer.h"

namespace nearbox::daemon {
namespace {

constexpr std::size_t kBuildDigits = 16;

// The first digits of the file's SHA-256: the build id the agent computes of itself.
base::Result<std::string> content_hash(const std::string& path) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return base::last_errno("open " + path);
  sha256_ctx hash;
  sha256_init(&hash);
  std::vector<std::uint8_t> buffer(256 * 1024);
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0) return base::last_errno("read " + path);
    if (n == 0) break;
    sha256_update(&hash, static_cast<std::size_t>(n), buffer.data());
  }
  std::uint8_t digest[SHA256_DIGEST_SIZE];
  sha256_digest(&hash, sizeof digest, digest);
  std::string hex;
  for (std::size_t i = 0; i < kBuildDigits / 2; ++i) {
    hex += "0123456789abcdef"[digest[i] >> 4];
    hex += "0123456789abcdef"[digest[i] & 15];
  }
  return hex;
}

}  // namespace

base::Result<AgentBinary> find_agent_binary() {
  std::vector<std::string> candidates;
  if (const char* given = std::getenv("NEARBOX_AGENT"); given != nullptr && *given != '\0') {
    candidates.emplace_back(given);
  } else {
    char self[PATH_MAX];
    const ssize_t n = ::readlink("/proc/self/exe", self, sizeof self);
    std::string dir(self, n > 0 ? static_cast<std::size_t>(n) : 0);
    dir.erase(dir.rfind('/') == std::string::npos ? 0 : dir.rfind('/'));
    candidates = {dir + "/nearbox-agent", dir + "/../libexec/nearbox/nearbox-agent"};
  }
  for (const auto& path : candidates) {
    if (::access(path.c_str(), R_OK) != 0) continue;
    auto hash = content_hash(path);
    if (!hash) return std::move(hash).error();
    return AgentBinary{path, *hash};
  }
  return api::make_error(api::ErrorCode::kInternal, "nearbox-agent is not beside nearbox (" +
                                                        candidates.front() +
                                                        "); install it there or set NEARBOX_AGENT");
}

}  // namespace nearbox::daemon
