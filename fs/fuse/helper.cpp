// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/helper.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

#include "client/base/fault.h"
#include "client/base/unique_fd.h"

extern char** environ;  // NOLINT(readability-redundant-declaration)

namespace nearbox::fs {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kReapDeadline{1};  // after SIGKILL
constexpr int kLookMs = 10;                       // between two looks at a child that has no pidfd

int left_ms(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<long>(left, 0, 60'000));
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> list;
  for (auto& s : strings) list.push_back(s.data());
  list.push_back(nullptr);
  return list;
}

struct Actions {
  posix_spawn_file_actions_t raw;
  Actions() { posix_spawn_file_actions_init(&raw); }
  ~Actions() { posix_spawn_file_actions_destroy(&raw); }
  Actions(const Actions&) = delete;
  Actions& operator=(const Actions&) = delete;
};

std::string drain(int fd, Clock::time_point deadline) {
  std::string text;
  char buffer[512];
  pollfd wait{fd, POLLIN, 0};
  while (text.size() < kMaxHelperText && ::poll(&wait, 1, left_ms(deadline)) > 0) {
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n <= 0) break;
    text.append(buffer, static_cast<std::size_t>(n));
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

bool wait_child(pid_t pid, Clock::time_point deadline, int& status) {
  const bool no_pidfd = base::fault::active("fs.no_pidfd");
  const base::UniqueFd pidfd(no_pidfd ? -1 : static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  pollfd wait{pidfd.get(), POLLIN, 0};
  while (true) {
    int raw = 0;
    const pid_t got = ::waitpid(pid, &raw, WNOHANG);
    if (got == pid) status = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
    if (got < 0 && errno != EINTR) status = -1;
    if (got == pid || (got < 0 && errno != EINTR)) return true;
    const int left = left_ms(deadline);
    if (left == 0 && Clock::now() >= deadline) return false;
    // Without a descriptor to wait on it is looked at again and again.
    (void)::poll(&wait, pidfd ? 1 : 0, pidfd ? left : std::min(left, kLookMs));
  }
}

base::Result<HelperOutcome> run_helper(const HelperRun& run, Clock::time_point deadline) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return base::last_errno("pipe");
  base::UniqueFd out(ends[0]);
  base::UniqueFd in(ends[1]);
  Actions actions;
  posix_spawn_file_actions_addopen(&actions.raw, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions.raw, in.get(), 1);
  posix_spawn_file_actions_adddup2(&actions.raw, in.get(), 2);
  if (run.fd3 >= 0) posix_spawn_file_actions_adddup2(&actions.raw, run.fd3, 3);
  auto argv = run.argv;
  auto env = run.env;
  for (char** at = environ; *at != nullptr; ++at) env.emplace_back(*at);
  pid_t pid = -1;
  const int error = ::posix_spawnp(&pid, argv[0].c_str(), &actions.raw, nullptr, pointers(argv).data(),
                                   pointers(env).data());
  if (error != 0) return base::errno_error(error, run.argv[0]);
  in.reset();
  HelperOutcome outcome;
  outcome.text = drain(out.get(), deadline);
  if (wait_child(pid, deadline, outcome.status)) return outcome;
  ::kill(pid, SIGKILL);
  (void)wait_child(pid, Clock::now() + kReapDeadline, outcome.status);
  return base::errno_error(ETIMEDOUT, run.argv[0]);
}

int run_child(const std::function<int()>& fn, Clock::time_point deadline) {
  const pid_t pid = ::fork();
  if (pid < 0) return -1;
  if (pid == 0) {
    ::syscall(SYS_close_range, 3U, ~0U, 0U);
    ::_exit(fn());
  }
  int status = -1;
  if (wait_child(pid, deadline, status)) return status;
  ::kill(pid, SIGKILL);
  (void)wait_child(pid, Clock::now() + kReapDeadline, status);
  return -1;
}

}  // namespace nearbox::fs
