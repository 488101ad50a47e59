// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/spawn.h"

#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <unistd.h>

namespace nearbox::daemon {
namespace {

constexpr std::size_t kMaxReport = 64 * 1024;
constexpr off_t kMaxLog = 4 * 1024 * 1024;

class SpawnActions {
 public:
  SpawnActions() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~SpawnActions() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
};

base::Result<base::UniqueFd> open_log(const std::string& path) {
  base::UniqueFd log(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!log) return base::last_errno("open " + path);
  if (::lseek(log.get(), 0, SEEK_END) > kMaxLog && ::ftruncate(log.get(), 0) != 0) {
    return base::last_errno("truncate " + path);
  }
  return log;
}

}  // namespace

base::Result<base::UniqueFd> spawn_self(const std::vector<std::string>& words, const std::string& log_path) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return base::last_errno("pipe");
  base::UniqueFd reader(ends[0]);
  const base::UniqueFd writer(ends[1]);
  auto log = open_log(log_path);
  if (!log) return std::move(log).error();
  SpawnActions spawn;
  posix_spawn_file_actions_addopen(&spawn.actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&spawn.actions, writer.get(), 1);
  posix_spawn_file_actions_adddup2(&spawn.actions, log->get(), 2);
  posix_spawn_file_actions_addchdir_np(&spawn.actions, "/");
  sigset_t none;
  sigemptyset(&none);
  sigset_t defaults;
  sigfillset(&defaults);
  posix_spawnattr_setsigmask(&spawn.attributes, &none);
  posix_spawnattr_setsigdefault(&spawn.attributes, &defaults);
  posix_spawnattr_setflags(&spawn.attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  auto copies = words;
  std::vector<char*> argv;
  for (auto& word : copies) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int err =
      ::posix_spawn(&pid, "/proc/self/exe", &spawn.actions, &spawn.attributes, argv.data(), environ);
  if (err != 0) return base::errno_error(err, "start " + words[1]);
  return reader;
}

base::Result<std::string> read_report(int fd, std::chrono::steady_clock::time_point deadline) {
  std::string text;
  while (text.size() < kMaxReport) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    if (left <= 0) return base::errno_error(ETIMEDOUT, "it did not answer");
    pollfd p{fd, POLLIN, 0};
    if (::poll(&p, 1, static_cast<int>(left)) <= 0) continue;
    char buffer[4096];
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer, static_cast<std::size_t>(n));
    if (const auto end = text.find('\n'); end != std::string::npos) {
      text.resize(end);
      return text;
    }
  }
  if (text.empty()) return base::errno_error(ECHILD, "it ended while it started");
  return text;
}

}  // namespace nearbox::daemon
