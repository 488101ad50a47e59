// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/watchdog.h"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include "fs/fuse/helper.h"
#include "fs/fuse/mount_point.h"

extern char** environ;  // NOLINT(readability-redundant-declaration)

namespace nearbox::fs {
namespace {

using Clock = std::chrono::steady_clock;
constexpr char kFarewell = 'q';
constexpr int kLookMs = 5000;                       // how often the child looks whether its mount is there
constexpr std::chrono::seconds kReapDeadline{2};    // for the child to end after the farewell
constexpr std::chrono::seconds kClearDeadline{30};  // for clearing the mount

bool ours(const std::string& mountpoint, unsigned minor) {
  const auto entry = find_mount(mountpoint);
  return entry && entry->type == kFsType && entry->minor == minor;
}

}  // namespace

base::Result<Watchdog> Watchdog::start(const std::string& program, const std::string& mountpoint,
                                       unsigned minor) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return base::last_errno("pipe");
  base::UniqueFd read_end(ends[0]);
  base::UniqueFd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, read_end.get(), 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);  // a signal to the daemon's group is not for it
  std::vector<std::string> words{"nearbox", kWatchdogCommand, mountpoint, std::to_string(minor)};
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, program.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return base::errno_error(error, "watchdog " + program);
  Watchdog dog;
  dog.pipe_ = std::move(write_end);
  dog.pid_ = pid;
  return dog;
}

Watchdog::Watchdog(Watchdog&& from) noexcept
    : pipe_(std::move(from.pipe_)), pid_(std::exchange(from.pid_, -1)) {}

Watchdog& Watchdog::operator=(Watchdog&& from) noexcept {
  farewell();
  pipe_ = std::move(from.pipe_);
  pid_ = std::exchange(from.pid_, -1);
  return *this;
}

void Watchdog::farewell() {
  if (pid_ < 0) return;
  (void)!::write(pipe_.get(), &kFarewell, 1);
  pipe_.reset();
  const pid_t pid = std::exchange(pid_, -1);
  int status = 0;
  if (wait_child(pid, Clock::now() + kReapDeadline, status)) return;
  ::kill(pid, SIGKILL);
  (void)wait_child(pid, Clock::now() + kReapDeadline, status);
}

int watchdog_main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string mountpoint = argv[2];
  const auto minor = static_cast<unsigned>(std::strtoul(argv[3], nullptr, 10));
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE}) ::signal(signal, SIG_IGN);
  ::syscall(SYS_close_range, 3U, ~0U, 0U);
  if (::chdir("/") != 0) return 2;
  while (true) {
    pollfd wait{0, POLLIN, 0};
    const int n = ::poll(&wait, 1, kLookMs);
    if (n < 0 && errno != EINTR) return 1;
    if (n > 0) {
      char byte = 0;
      if (::read(0, &byte, 1) == 1 && byte == kFarewell) return 0;
      break;  // the daemon died
    }
    if (!ours(mountpoint, minor)) return 0;
  }
  const auto deadline = Clock::now() + kClearDeadline;
  while (ours(mountpoint, minor) && Clock::now() < deadline) {
    if (!unmount_path(mountpoint, true, deadline)) ::poll(nullptr, 0, 100);  // between attempts
  }
  return ours(mountpoint, minor) ? 1 : 0;
}

}  // namespace nearbox::fs
