// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/start_marker.h"

#include <cstdio>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "client/base/unique_fd.h"

namespace nearbox::agent {
namespace {

constexpr time_t kKeepSeconds = 24L * 3600;

void remove_old(const std::string& dir) {
  DIR* const list = ::opendir(dir.c_str());
  if (list == nullptr) return;
  const time_t now = ::time(nullptr);
  while (const dirent* const entry = ::readdir(list)) {
    struct stat st {};
    if (::fstatat(::dirfd(list), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
      continue;
    if (now - st.st_mtime > kKeepSeconds) (void)::unlinkat(::dirfd(list), entry->d_name, 0);
  }
  ::closedir(list);
}

}  // namespace

StartMarkers::StartMarkers(std::string dir) : dir_(std::move(dir)) {
  if (dir_.empty()) return;
  if (::mkdir(dir_.c_str(), 0700) != 0 && errno == EEXIST) remove_old(dir_);
}

base::Result<void> StartMarkers::claim(std::uint64_t proc) const {
  if (dir_.empty()) return {};
  const base::UniqueFd fd(::open(path(proc).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (fd) return {};
  if (errno == EEXIST)
    return base::errno_error(ESTALE, "the agent died while it started this command; it may have run");
  return base::last_errno("mark the start");
}

void StartMarkers::drop(std::uint64_t proc) const {
  if (!dir_.empty()) (void)::unlink(path(proc).c_str());
}

std::string StartMarkers::path(std::uint64_t proc) const {
  char name[24];
  (void)std::snprintf(name, sizeof name, "/%016llx", static_cast<unsigned long long>(proc));
  return dir_ + name;
}

}  // namespace nearbox::agent
