// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/trash.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <dirent.h>
#include <exception>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include "client/base/fault.h"
#include "client/base/unique_fd.h"

namespace nearbox::sandbox_server {
namespace {

// Directories deeper than this are first moved up, so that no depth takes all descriptors or stack.
constexpr std::size_t kMaxOpenDepth = 64;
constexpr std::chrono::milliseconds kHeldLook{20};  // how often a fault point is asked again

// The directory itself, never what a link leads to.
base::UniqueFd open_directory(int parent, const char* name) {
  const base::UniqueFd node(::openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!node) return base::UniqueFd();
  base::UniqueFd dir(::openat(node.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir && errno == EACCES) {
    // The magic link of the descriptor: exactly this directory, whatever its name stands for by now.
    const auto magic = "/proc/self/fd/" + std::to_string(node.get());
    if (::chmod(magic.c_str(), 0700) != 0) return base::UniqueFd();
    dir.reset(::openat(node.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  struct stat st {};
  if (dir && ::fstat(dir.get(), &st) == 0 && (st.st_mode & 0700U) != 0700U) (void)::fchmod(dir.get(), 0700);
  return dir;
}

// A tree in work: where directories that lie too deep are moved to, and how many there are.
struct Removal {
  int top;
  std::size_t moved = 0;
};

std::string moved_name(std::size_t number) {
  return ".deep-" + std::to_string(::getpid()) + "-" + std::to_string(number);
}

bool remove_below(Removal& removal, int parent, const char* name, std::size_t depth) {
  if (::unlinkat(parent, name, 0) == 0 || errno == ENOENT) return true;
  if (depth >= kMaxOpenDepth) {
    // Removed later by whoever empties `top`.
    const auto to = moved_name(removal.moved);
    if (::renameat(parent, name, removal.top, to.c_str()) != 0) return false;
    ++removal.moved;
    return true;
  }
  const auto dir = open_directory(parent, name);
  if (!dir) return false;
  bool all = true;
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(::fdopendir(::fcntl(dir.get(), F_DUPFD_CLOEXEC, 0)),
                                                    ::closedir);
  while (listing) {
    const auto* entry = ::readdir(listing.get());
    if (entry == nullptr) break;
    const std::string_view child = entry->d_name;
    if (child != "." && child != "..") {
      all = remove_below(removal, dir.get(), entry->d_name, depth + 1) && all;
    }
  }
  return ::unlinkat(parent, name, AT_REMOVEDIR) == 0 && all;
}

}  // namespace

bool remove_tree(int parent, const char* name) {
  Removal removal{parent};
  bool all = remove_below(removal, parent, name, 0);
  for (std::size_t i = 0; i < removal.moved; ++i) {
    all = remove_below(removal, parent, moved_name(i).c_str(), 0) && all;
  }
  return all;
}

Trash::Trash(std::string dir, base::Logger& log) : dir_(std::move(dir)), log_(log) {
  thread_ = std::jthread([this] { run(); });
}

bool Trash::take(const std::string& path) {
  auto name = path.substr(path.rfind('/') + 1);
  if (::rename(path.c_str(), (dir_ + "/" + name).c_str()) != 0) return false;
  base::MutexLock lock(mu_);
  names_.push_back(std::move(name));
  changed_.notify_all();
  return true;
}

std::size_t Trash::empty_now() {
  std::vector<std::string> names;
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator(dir_, ec)) {
    names.push_back(entry.path().filename().string());
  }
  for (const auto& name : names) remove(name);
  return names.size();
}

void Trash::remove(const std::string& name) {
  const base::UniqueFd parent(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent || !remove_tree(parent.get(), name.c_str())) {
    log_.warn("sandbox server could not remove all files path=" + dir_ + "/" + name);
  }
}

void Trash::run() noexcept {
  pthread_setname_np(pthread_self(), "trash");
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::seconds kWaitStep{1};  // a lost wake-up costs time, not life
  while (true) {
    std::string name;
    {
      base::MutexLock lock(mu_);
      while (names_.empty() && !stopping_) changed_.wait_until(mu_, Clock::now() + kWaitStep);
      while (!stopping_ && base::fault::active("sandbox_server.hold_removal")) {
        changed_.wait_until(mu_, Clock::now() + kHeldLook);
      }
      if (names_.empty()) return;
      name = names_.front();
    }
    try {
      remove(name);
    } catch (const std::exception& e) {
      log_.error(std::string("sandbox server could not remove files error=") + e.what());
    }
    base::MutexLock lock(mu_);
    names_.pop_front();
  }
}

void Trash::stop() {
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

std::size_t Trash::waiting() {
  base::MutexLock lock(mu_);
  return names_.size();
}

}  // namespace nearbox::sandbox_server
