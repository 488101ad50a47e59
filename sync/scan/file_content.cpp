// SPDX-License-Identifier: Apache-2.0
#include "sync/scan/file_content.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "client/base/fault.h"
#include "client/base/unique_fd.h"
#include "sync/ignore/beneath.h"
#include "sync/scan/scan.h"

namespace nearbox::scan {
namespace {

constexpr std::size_t kReadBytes = 1024 * 1024;
constexpr std::int64_t kSecond = 1'000'000'000;

std::int64_t nanoseconds(const timespec& t) {
  return static_cast<std::int64_t>(t.tv_sec) * kSecond + t.tv_nsec;
}

struct HashState {
  HashState() : state(XXH3_createState()) {}
  HashState(const HashState&) = delete;
  HashState& operator=(const HashState&) = delete;
  ~HashState() { XXH3_freeState(state); }
  XXH3_state_t* state;
};

index::Digest canonical(XXH128_hash_t hash) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, hash);
  index::Digest digest;
  static_assert(sizeof bytes.digest == sizeof digest);
  std::memcpy(digest.data(), bytes.digest, digest.size());
  return digest;
}

base::Result<index::Digest> hash_descriptor(int fd, std::atomic<std::uint64_t>* counter,
                                            const std::stop_token& stop) {
  const HashState hash;
  if (hash.state == nullptr) return base::errno_error(ENOMEM, "hash");
  XXH3_128bits_reset(hash.state);
  // One buffer for each thread, as long as the thread runs.
  thread_local const std::unique_ptr<char[]> buffer(new char[kReadBytes]);
  std::uint64_t at = 0;
  while (true) {
    if (stop.stop_requested()) return base::errno_error(ECANCELED, "hash");
    const ssize_t n = ::pread(fd, buffer.get(), kReadBytes, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read");
    if (n == 0) break;
    XXH3_128bits_update(hash.state, buffer.get(), static_cast<std::size_t>(n));
    at += static_cast<std::uint64_t>(n);
    if (counter != nullptr) counter->fetch_add(static_cast<std::uint64_t>(n), std::memory_order_relaxed);
  }
  return canonical(XXH3_128bits_digest(hash.state));
}

base::Result<std::string> link_target(int fd) {
  std::string target(index::kMaxPathBytes + 1, '\0');
  const ssize_t n = ::readlinkat(fd, "", target.data(), target.size());
  if (n < 0) return base::last_errno("readlink");
  target.resize(static_cast<std::size_t>(n));
  return target;
}

}  // namespace

RacyRule::RacyRule(std::int64_t granularity_ns) : granularity_ns_(granularity_ns), tick_ns_(granularity_ns) {
  if (tick_ns_ > 0) return;
  // Kernels before 6.13, and many file systems since, stamp files with the coarse clock.
  timespec tick{};
  tick_ns_ = ::clock_getres(CLOCK_REALTIME_COARSE, &tick) == 0 ? std::max<std::int64_t>(nanoseconds(tick), 1)
                                                               : kSecond / 100;
}

std::int64_t RacyRule::now_ns() const {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return rounded(nanoseconds(now));
}

std::int64_t RacyRule::rounded(std::int64_t stamp_ns) const {
  return granularity_ns_ > 0 ? stamp_ns - (stamp_ns % granularity_ns_ + granularity_ns_) % granularity_ns_
                             : stamp_ns;
}

// A change after the reading began leaves the stamps alone only when it falls into the same tick of the file
// system's clock as the change before. Two ticks, since that clock and ours need not step together. A ctime
// ahead of our clock (a server's) is never believed; an mtime may be set to any time, so only one near now
// counts.
bool RacyRule::racy(const index::StatInfo& stat, std::int64_t read_ns) const {
  if (base::fault::active("scan.no_racy_rule")) return false;
  const bool whole_seconds =
      granularity_ns_ == 0 && stat.mtime_ns % kSecond == 0 && stat.ctime_ns % kSecond == 0;
  const std::int64_t margin = 2 * (whole_seconds ? std::max(tick_ns_, 2 * kSecond) : tick_ns_);
  return stat.ctime_ns >= read_ns - margin || std::llabs(stat.mtime_ns - read_ns) <= margin;
}

index::StatInfo stat_info(const struct stat& st, const RacyRule& rule) {
  index::StatInfo info;
  info.type = S_ISDIR(st.st_mode)   ? index::Type::kDirectory
              : S_ISLNK(st.st_mode) ? index::Type::kSymlink
                                    : index::Type::kFile;
  info.mode = st.st_mode & 07777;
  info.size = static_cast<std::uint64_t>(st.st_size);
  info.mtime_ns = rule.rounded(nanoseconds(st.st_mtim));
  info.ctime_ns = rule.rounded(nanoseconds(st.st_ctim));
  info.inode = st.st_ino;
  info.device = st.st_dev;
  return info;
}

base::Result<Content> read_content(int root, std::string_view path, index::Type type, const RacyRule& rule,
                                   std::atomic<std::uint64_t>* counter, const std::stop_token& stop) {
  const bool link = type == index::Type::kSymlink;
  // O_NONBLOCK: should a pipe have taken the file's place, its open must not wait for a writer.
  auto fd = ignore::open_beneath(root, path, link ? O_PATH : O_RDONLY | O_NONBLOCK | O_NOCTTY);
  if (!fd) return std::move(fd).error();
  for (int tries = 0; tries < kReadTries; ++tries) {
    Content content;
    const auto read_ns = rule.now_ns();
    struct stat before {};
    struct stat after {};
    if (::fstat(fd->get(), &before) != 0) return base::last_errno("stat");
    if (link ? !S_ISLNK(before.st_mode) : !S_ISREG(before.st_mode)) return base::errno_error(ESTALE, "read");
    if (link) {
      auto target = link_target(fd->get());
      if (!target) return std::move(target).error();
      content.target = *std::move(target);
      content.digest = digest_of(content.target);
    } else {
      auto digest = hash_descriptor(fd->get(), counter, stop);
      if (!digest) return std::move(digest).error();
      content.digest = *digest;
    }
    if (::fstat(fd->get(), &after) != 0) return base::last_errno("stat");
    content.stat = stat_info(before, rule);
    if (content.stat != stat_info(after, rule) || base::fault::active("scan.changing", path)) continue;
    content.racy = rule.racy(content.stat, read_ns);
    return content;
  }
  return base::errno_error(EAGAIN, "read");
}

index::Digest digest_of(std::string_view bytes) {
  return canonical(XXH3_128bits(bytes.data(), bytes.size()));
}

}  // namespace nearbox::scan
