// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/push_stage.h"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <optional>
#include <poll.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"

namespace nearbox::agent {
namespace {

constexpr std::string_view kScratch = "t-";
constexpr std::string_view kStage = "s-";
constexpr std::string_view kHex = "0123456789abcdef";

std::optional<wire::Digest> digest_of_name(std::string_view name) {
  wire::Digest digest{};
  if (!name.starts_with(kStage) || name.size() != kStage.size() + 2 * digest.size()) return std::nullopt;
  name.remove_prefix(kStage.size());
  for (std::size_t i = 0; i < digest.size(); ++i) {
    const auto high = kHex.find(name[2 * i]);
    const auto low = kHex.find(name[2 * i + 1]);
    if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
    digest[i] = static_cast<std::byte>(high * 16 + low);
  }
  return digest;
}

// Calls take(name, stat) for what lies in the directory.
template <class Take>
void each_name(int dir, Take take) {
  const int copy = ::openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return;
  DIR* const list = ::fdopendir(copy);
  if (list == nullptr) {
    (void)::close(copy);
    return;
  }
  for (std::size_t looks = 0; looks < kMaxStageLooks; ++looks) {
    const auto* const entry = ::readdir(list);  // NOLINT(concurrency-mt-unsafe): a stream of our own
    if (entry == nullptr) break;
    struct stat st {};
    if (::fstatat(dir, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0) take(std::string(entry->d_name), st);
  }
  (void)::closedir(list);
}

// Of what is mounted at a descriptor; 0 where the kernel does not say (before 5.8).
std::uint64_t mount_id(int fd) {
  struct statx st {};
  if (base::fault::active("agent.no_mount_id")) return 0;
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &st) != 0 || (st.stx_mask & STATX_MNT_ID) == 0) return 0;
  return st.stx_mnt_id;
}

bool same_mount(int a, int b) {
  struct stat first {};
  struct stat second {};
  return ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         mount_id(a) == mount_id(b);
}

constexpr int kTries = 200;  // of a directory that others remove at the same time: a second
constexpr int kTryAgainMs = 5;

// Held together by all that stage in a directory, alone by who removes it. False: it is being removed, or
// was. File systems without locks of this kind keep it.
bool hold(int dir) {
  struct stat st {};
  if (::flock(dir, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK) return false;
  return ::fstat(dir, &st) != 0 || st.st_nlink > 0;
}

// `name` in `parent`, made when it is missing; only ours, and nobody else's to look into.
base::Result<base::UniqueFd> open_once(int parent, const std::string& name) {
  if (::mkdirat(parent, name.c_str(), 0700) != 0 && errno != EEXIST) return base::last_errno("staging");
  base::UniqueFd dir(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!dir) return base::last_errno("staging");
  struct stat st {};
  if (::fstat(dir.get(), &st) != 0) return base::last_errno("staging");
  if (st.st_uid != ::geteuid()) return base::errno_error(EACCES, "staging");
  if ((st.st_mode & 0777) != 0700 && ::fchmod(dir.get(), 0700) != 0) return base::last_errno("staging");
  if (!hold(dir.get())) return base::errno_error(ENOENT, "staging");
  return dir;
}

// An earlier session, or another agent, may be removing it.
base::Result<base::UniqueFd> open_own(int parent, const std::string& name) {
  auto dir = open_once(parent, name);
  struct stat st {};
  for (int tries = 1; tries < kTries && !dir && dir.error().as_errno() == ENOENT; ++tries) {
    if (::fstat(parent, &st) != 0 || st.st_nlink == 0) break;  // gone for good
    (void)::poll(nullptr, 0, kTryAgainMs);  // whoever removes it does nothing else meanwhile
    dir = open_once(parent, name);
  }
  return dir;
}

bool inside(const std::string& path, const std::string& directory) {
  return directory == "/" || path == directory || path.starts_with(directory + "/");
}

}  // namespace

StageDir::~StageDir() {
  if (::flock(dir_.get(), LOCK_EX | LOCK_NB) != 0) return;       // others stage in it
  (void)::unlinkat(parent_.get(), name_.c_str(), AT_REMOVEDIR);  // fails while something is in it
}

std::string StageDir::scratch_name() {
  std::uint64_t random = 0;
  if (::getrandom(&random, sizeof random, 0) != sizeof random)
    random = static_cast<std::uint64_t>(::getpid());
  return std::string(kScratch) + std::to_string(random) + "-" + std::to_string(next_.fetch_add(1));
}

std::string StageDir::stage_name(const wire::Digest& digest) {
  std::string name(kStage);
  for (const auto byte : digest) {
    name += kHex[std::to_integer<std::size_t>(byte) >> 4];
    name += kHex[std::to_integer<std::size_t>(byte) & 15];
  }
  return name;
}

std::vector<wire::PushStage> StageDir::stages() const {
  std::vector<wire::PushStage> out;
  each_name(dir_.get(), [&](const std::string& name, const struct stat& st) {
    const auto digest = digest_of_name(name);
    if (digest && S_ISREG(st.st_mode) && out.size() < wire::kMaxPushStages) out.push_back({*digest});
  });
  return out;
}

void StageDir::clean() const {
  const auto now = ::time(nullptr);
  each_name(dir_.get(), [&](const std::string& name, const struct stat& st) {
    const bool stage = name.starts_with(kStage);
    if (!stage && !name.starts_with(kScratch)) return;
    const std::chrono::seconds kept = stage ? std::chrono::seconds(kStageKept) : kScratchKept;
    const auto stamp = std::max(st.st_ctim.tv_sec, st.st_mtim.tv_sec);
    if (now - stamp > kept.count()) (void)::unlinkat(dir_.get(), name.c_str(), 0);
  });
}

base::Result<StageDirPtr> StageDirs::make(const Root& root) const {
  const auto name = ".nearbox-sync-" + std::to_string(::geteuid());
  std::vector<std::string> candidates;
  if (root.path != "/") {
    candidates.push_back(root.path.substr(0, std::max<std::size_t>(root.path.rfind('/'), 1)));
  }
  if (!inside(who_.home, root.path)) candidates.push_back(who_.home);
  for (const auto& candidate : candidates) {
    base::UniqueFd parent(::open(candidate.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!parent || !same_mount(parent.get(), root.dir.get())) continue;
    auto dir = open_own(parent.get(), name);
    if (!dir || !same_mount(dir->get(), root.dir.get())) continue;
    return std::make_shared<StageDir>(std::move(parent), name, std::move(*dir));
  }
  base::UniqueFd parent(::openat(root.dir.get(), ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!parent) return base::last_errno("staging");
  auto dir = open_own(parent.get(), ".nearbox");
  if (!dir) return std::move(dir).error();
  return std::make_shared<StageDir>(std::move(parent), ".nearbox", std::move(*dir));
}

base::Result<StageDirPtr> StageDirs::of(const RootPtr& root) {
  base::MutexLock lock(mu_);
  auto& known = dirs_[root->path];
  if (known) {
    struct stat st {};  // removed from outside: another one is made
    if (::fstat(known->fd(), &st) == 0 && st.st_nlink > 0) return known;
  }
  auto made = make(*root);
  if (!made) {
    dirs_.erase(root->path);
    return std::move(made).error();
  }
  known = *made;
  known->clean();
  return known;
}

}  // namespace nearbox::agent
