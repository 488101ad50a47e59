// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/launch.h"

#include <cstring>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "tools/agent/build_id.h"

namespace nearbox::agent {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kMaxReason = 512;
constexpr off_t kMaxLogBytes = 1024 * 1024;

// Standard input without data, also where there is no /dev/null.
int open_nothing() {
  const int fd = ::open("/dev/null", O_RDWR);
  if (fd >= 0) return fd;
  int ends[2];
  if (::pipe(ends) != 0) return -1;
  ::close(ends[1]);
  return ends[0];
}

int open_log(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);
  struct stat st {};
  if (fd >= 0 && ::fstat(fd, &st) == 0 && st.st_size > kMaxLogBytes) (void)::ftruncate(fd, 0);
  return fd;
}

// In the child: puts the descriptors in order, closes all others, and becomes the agent.
[[noreturn]] void become_agent(const std::vector<std::string>& args, int ready, const std::string& log) {
  ::setsid();
  const pid_t again = ::fork();  // no longer a session leader: never gets a terminal
  if (again != 0) ::_exit(again < 0 ? 1 : 0);
  const int nothing = ::fcntl(open_nothing(), F_DUPFD, 10);
  int out = ::fcntl(open_log(log), F_DUPFD, 10);
  if (out < 0) out = nothing;
  const int ready_high = ::fcntl(ready, F_DUPFD, 10);
  if (nothing < 0 || ready_high < 0 || ::dup2(nothing, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(out, 2) < 0 ||
      ::dup2(ready_high, kReadyFd) < 0) {
    ::_exit(1);
  }
  if (::syscall(SYS_close_range, kReadyFd + 1, ~0U, 0) != 0) {  // before 5.9
    for (int fd = kReadyFd + 1; fd < 1024; ++fd) ::close(fd);
  }
  if (::chdir("/") != 0) ::_exit(1);
  std::vector<char*> argv;
  argv.reserve(args.size() + 1);
  for (const auto& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  ::execv("/proc/self/exe", argv.data());
  ::_exit(1);
}

// What the agent says on its ready pipe: "ok", or the reason it gives.
base::Result<void> wait_ready(int fd, Clock::time_point deadline) {
  std::string said;
  char buffer[kMaxReason];
  while (said.size() < kMaxReason) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    struct pollfd wait {
      fd, POLLIN, 0
    };
    const int polled = left > 0 ? ::poll(&wait, 1, static_cast<int>(left)) : 0;
    if (polled < 0 && errno == EINTR) continue;
    if (polled <= 0) return base::errno_error(ETIMEDOUT, "the agent did not come up");
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    said.append(buffer, static_cast<std::size_t>(n));
    if (said.find('\n') != std::string::npos) break;
  }
  if (said == "ok\n") return {};
  return base::errno_error(ECHILD,
                           said.empty() ? "the agent ended at once" : said.substr(0, said.find('\n')));
}

base::Result<void> start_agent(const LaunchOptions& options, const std::string& directory,
                               const StatePaths& paths, Clock::time_point deadline) {
  const std::string self = "nearbox-agent";
  std::vector<std::string> args = {self,          "serve",
                                   "--listen",    options.kind == ListenKind::kTcp ? "tcp" : "unix",
                                   "--state-dir", directory,
                                   "--linger",    std::to_string(options.linger.count()),
                                   "--ready-fd",  std::to_string(kReadyFd)};
  if (options.port != 0) args.insert(args.end(), {"--port", std::to_string(options.port)});
  if (!options.user.empty()) args.insert(args.end(), {"--user", options.user});
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return base::last_errno("pipe");
  const base::UniqueFd in(ends[0]);
  base::UniqueFd out(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return base::last_errno("fork");
  if (child == 0) become_agent(args, out.get(), paths.log);
  out.reset();
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return wait_ready(in.get(), deadline);
}

// Running: it holds its lock and takes connections.
bool alive(const StatePaths& paths, const AgentState& state) {
  const auto lock = lock_file(paths.run, Clock::now());
  if (lock || lock.error().as_errno() != EWOULDBLOCK) return false;
  return connect_agent(state).ok();
}

}  // namespace

base::Result<base::UniqueFd> connect_agent(const AgentState& state) {
  const bool local = !state.socket.empty();
  base::UniqueFd fd(::socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return base::last_errno("socket");
  struct sockaddr_un unix_address {};
  struct sockaddr_in inet_address {};
  const struct sockaddr* address = nullptr;
  socklen_t size = 0;
  if (local) {
    unix_address.sun_family = AF_UNIX;
    if (state.socket.size() >= sizeof unix_address.sun_path) return base::errno_error(EINVAL, "socket path");
    std::memcpy(unix_address.sun_path, state.socket.c_str(), state.socket.size());
    address = reinterpret_cast<const struct sockaddr*>(&unix_address);
    size = sizeof unix_address;
  } else {
    inet_address.sin_family = AF_INET;
    inet_address.sin_port = htons(state.port);
    inet_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address = reinterpret_cast<const struct sockaddr*>(&inet_address);
    size = sizeof inet_address;
  }
  while (::connect(fd.get(), address, size) != 0) {  // to this very machine: answers at once
    if (errno != EINTR) return base::last_errno("connect to the agent");
  }
  return fd;
}

base::Result<AgentState> find_or_start(const LaunchOptions& options) {
  const auto deadline = Clock::now() + kLaunchTimeout;
  auto directory = state_directory(options.state_dir);
  if (!directory) return std::move(directory).error();
  const auto paths = state_paths(*directory, build_id(), options.kind, options.user);
  auto lock = lock_file(paths.start, deadline);  // one at a time looks and starts
  if (!lock) return std::move(lock).error();
  auto state = read_state(paths.state);
  if (state && *state && alive(paths, **state)) return **state;
  if (auto started = start_agent(options, *directory, paths, deadline); !started) {
    return std::move(started).error();
  }
  state = read_state(paths.state);
  if (!state) return std::move(state).error();
  if (!*state) return base::errno_error(ENOENT, "the agent left no state");
  return **state;
}

}  // namespace nearbox::agent
