// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/git_child.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <optional>
#include <poll.h>
#include <spawn.h>
#include <string_view>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/unique_fd.h"

extern char** environ;

namespace nearbox::ignore {
namespace {

using base::UniqueFd;
using Clock = std::chrono::steady_clock;

// Set by hooks and aliases, from which we may have been started: they name a repository of their own.
constexpr std::string_view kDropped[] = {
    "GIT_DIR=",        "GIT_WORK_TREE=",        "GIT_INDEX_FILE=",
    "GIT_COMMON_DIR=", "GIT_OBJECT_DIRECTORY=", "GIT_ALTERNATE_OBJECT_DIRECTORIES=",
    "GIT_NAMESPACE=",  "GIT_PREFIX=",           "GIT_TRACE",
};

std::vector<std::string> child_environment() {
  std::vector<std::string> env;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    if (std::any_of(std::begin(kDropped), std::end(kDropped),
                    [&](auto name) { return text.starts_with(name); })) {
      continue;
    }
    env.emplace_back(text);
  }
  env.insert(env.end(), {"GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "GIT_NO_LAZY_FETCH=1", "LC_ALL=C"});
  return env;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> list;
  list.reserve(strings.size() + 1);
  for (auto& text : strings) list.push_back(text.data());
  list.push_back(nullptr);
  return list;
}

// Owns a child process: ends it if it still runs.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    (void)reap();
  }
  // The exit status; nullopt: it did not end in time.
  std::optional<int> wait_until(Clock::time_point deadline) {
    const UniqueFd handle(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    // Where there are no such handles (before Linux 5.3, or refused) it is asked for every 10 ms.
    while (!handle) {
      siginfo_t ended{};
      const int n = ::waitid(P_PID, static_cast<id_t>(pid_), &ended, WEXITED | WNOHANG | WNOWAIT);
      if ((n == 0 && ended.si_pid == pid_) || (n < 0 && errno != EINTR)) break;
      if (Clock::now() >= deadline) return std::nullopt;
      (void)::poll(nullptr, 0, 10);
    }
    while (handle) {
      pollfd end{handle.get(), POLLIN, 0};
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
      const int n = ::poll(&end, 1, static_cast<int>(std::clamp<std::int64_t>(left + 1, 0, 60'000)));
      if (n > 0) break;
      if (n == 0 && left <= 0) return std::nullopt;
      if (n < 0 && errno != EINTR) return std::nullopt;
    }
    return reap();
  }

 private:
  int reap() {
    int status = -1;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }
  pid_t pid_;
};

struct Streams {
  UniqueFd out;
  UniqueFd err;
  std::string out_text;
  std::string err_text;
};

// One read of a descriptor that is ready; false at its end.
bool take(UniqueFd& fd, std::string& text, std::size_t limit) {
  std::array<char, 65536> buffer;
  const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (n <= 0) return false;
  text.append(buffer.data(), std::min(static_cast<std::size_t>(n), limit - std::min(limit, text.size())));
  return true;
}

base::Result<void> collect(Streams& io, Clock::time_point deadline, std::size_t limit) {
  while (io.out || io.err) {
    pollfd fds[2] = {{io.out.get(), POLLIN, 0}, {io.err.get(), POLLIN, 0}};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return base::errno_error(ETIMEDOUT, "git did not end in time");
    const int n = ::poll(fds, 2, static_cast<int>(std::min<std::int64_t>(left + 1, 60'000)));
    if (n < 0 && errno != EINTR) return base::last_errno("poll");
    if (n <= 0) continue;
    if (fds[0].revents != 0 && !take(io.out, io.out_text, limit + 1)) io.out.reset();
    if (fds[1].revents != 0 && !take(io.err, io.err_text, 4096)) io.err.reset();
    if (io.out_text.size() > limit) return base::errno_error(EFBIG, "git wrote too much");
  }
  return {};
}

base::Result<pid_t> spawn(const std::vector<std::string>& args, int out, int err) {
  std::vector<std::string> words = {"git", "-c", "core.fsmonitor=false"};
  words.insert(words.end(), args.begin(), args.end());
  auto env = child_environment();
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  if (posix_spawn_file_actions_init(&actions) != 0) return base::errno_error(ENOMEM, "git");
  if (posix_spawnattr_init(&attributes) != 0) {
    posix_spawn_file_actions_destroy(&actions);
    return base::errno_error(ENOMEM, "git");
  }
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out, 1);
  posix_spawn_file_actions_adddup2(&actions, err, 2);
  sigset_t none;
  sigset_t defaults;
  sigemptyset(&none);
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = -1;
  const int failed =
      ::posix_spawnp(&pid, "git", &actions, &attributes, pointers(words).data(), pointers(env).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) return base::errno_error(failed, "git");
  return pid;
}

}  // namespace

base::Result<std::string> run_git(const std::vector<std::string>& args, Clock::time_point deadline,
                                  std::size_t limit) {
  int out[2];
  int err[2];
  if (::pipe2(out, O_CLOEXEC) != 0) return base::last_errno("pipe");
  UniqueFd out_end(out[1]);
  Streams io;
  io.out.reset(out[0]);
  if (::pipe2(err, O_CLOEXEC) != 0) return base::last_errno("pipe");
  UniqueFd err_end(err[1]);
  io.err.reset(err[0]);
  auto pid = spawn(args, out_end.get(), err_end.get());
  if (!pid) return std::move(pid).error();
  Child child(*pid);
  out_end.reset();
  err_end.reset();
  if (auto done = collect(io, deadline, limit); !done) return std::move(done).error();
  const auto status = child.wait_until(deadline);
  if (!status) return base::errno_error(ETIMEDOUT, "git did not end in time");
  if (!WIFEXITED(*status) || WEXITSTATUS(*status) != 0) {
    return base::errno_error(EIO, "git: " + io.err_text.substr(0, io.err_text.find('\n')));
  }
  return std::move(io.out_text);
}

}  // namespace nearbox::ignore
