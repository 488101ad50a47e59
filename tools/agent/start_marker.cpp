// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/start_marker.h"

#include <charconv>
#include <cstdio>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kDigits = 16;

// The number a file is named after, if it is one of ours.
bool parse_name(const char* name, std::uint64_t& out) {
  const char* const end = name + std::strlen(name);
  if (static_cast<std::size_t>(end - name) != kDigits) return false;
  const auto parsed = std::from_chars(name, end, out, 16);
  return parsed.ec == std::errc{} && parsed.ptr == end;
}

}  // namespace

StartMarkers::StartMarkers(std::string dir, std::time_t (*now)()) : dir_(std::move(dir)), now_(now) {
  if (dir_.empty()) return;
  if (::mkdir(dir_.c_str(), 0700) != 0 && errno == EEXIST) load();
}

void StartMarkers::load() {
  DIR* const list = ::opendir(dir_.c_str());
  if (list == nullptr) return;
  base::MutexLock lock(mu_);
  while (const dirent* const entry = ::readdir(list)) {
    struct stat st {};
    std::uint64_t proc = 0;
    if (!parse_name(entry->d_name, proc) ||
        ::fstatat(::dirfd(list), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) {
      continue;
    }
    add_locked(proc, st.st_mtime);
  }
  ::closedir(list);
}

void StartMarkers::add_locked(std::uint64_t proc, std::time_t since) {
  if (!marks_.emplace(proc, since).second) return;
  by_age_.emplace(since, proc);
  trim_locked();
}

void StartMarkers::trim_locked() {
  const auto oldest_kept = now_() - kKeepStartMark;
  while (!by_age_.empty() && (by_age_.size() > kMaxStartMarks || by_age_.begin()->first < oldest_kept)) {
    const auto proc = by_age_.begin()->second;
    by_age_.erase(by_age_.begin());
    marks_.erase(proc);
    (void)::unlink(path(proc).c_str());
  }
}

base::Result<void> StartMarkers::claim(std::uint64_t proc) {
  if (dir_.empty()) return {};
  base::MutexLock lock(mu_);
  trim_locked();
  const base::UniqueFd fd(::open(path(proc).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (fd) {
    add_locked(proc, now_());
    return {};
  }
  if (errno == EEXIST)
    return base::errno_error(ESTALE, "the agent died while it started this command; it may have run");
  return base::last_errno("mark the start");
}

void StartMarkers::drop(std::uint64_t proc) {
  if (dir_.empty()) return;
  base::MutexLock lock(mu_);
  if (const auto it = marks_.find(proc); it != marks_.end()) {
    by_age_.erase({it->second, proc});
    marks_.erase(it);
  }
  (void)::unlink(path(proc).c_str());
}

std::size_t StartMarkers::size() {
  base::MutexLock lock(mu_);
  return marks_.size();
}

std::string StartMarkers::path(std::uint64_t proc) const {
  char name[24];
  (void)std::snprintf(name, sizeof name, "/%016llx", static_cast<unsigned long long>(proc));
  return dir_ + name;
}

}  // namespace nearbox::agent
