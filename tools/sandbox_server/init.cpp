// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/init.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "client/base/unique_fd.h"
#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/proc_tree.h"
#include "tools/sandbox_server/server.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {

std::string encode_init_config(const InitConfig& config) {
  const nlohmann::json out = {{"id", config.id},
                              {"dir", config.dir},
                              {"template", config.template_id},
                              {"mode", static_cast<int>(config.mode)},
                              {"probe", config.probe},
                              {"token", config.token},
                              {"envs", config.envs},
                              {"binds", config.binds}};
  return out.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

std::optional<InitConfig> decode_init_config(std::string_view text) {
  try {
    const auto in = nlohmann::json::parse(text);
    InitConfig config;
    config.id = in.at("id").get<std::string>();
    config.dir = in.at("dir").get<std::string>();
    config.template_id = in.at("template").get<std::string>();
    config.mode = static_cast<IsolationMode>(in.at("mode").get<int>());
    config.probe = in.at("probe").get<bool>();
    config.token = in.at("token").get<std::string>();
    config.envs = in.at("envs").get<std::map<std::string, std::string>>();
    config.binds = in.at("binds").get<std::vector<std::string>>();
    return config;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

namespace {

void say(std::string_view text) { (void)::send(kControlFd, text.data(), text.size(), MSG_NOSIGNAL); }

bool write_file(const char* path, const std::string& text) {
  const base::UniqueFd fd(::open(path, O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

std::optional<InitConfig> receive_config() {
  std::string text(kMaxControlMessage, '\0');
  pollfd fd{kControlFd, POLLIN, 0};
  constexpr int kConfigTimeoutMs = 10000;
  if (::poll(&fd, 1, kConfigTimeoutMs) <= 0) return std::nullopt;
  const auto got = ::recv(kControlFd, text.data(), text.size(), 0);
  if (got <= 0) return std::nullopt;
  return decode_init_config(std::string_view(text.data(), static_cast<std::size_t>(got)));
}

base::Result<void> enter_namespaces(IsolationMode mode) {
  if (mode == IsolationMode::kRoot) {
    if (::unshare(CLONE_NEWNS | CLONE_NEWPID) != 0) return base::last_errno("new namespaces");
    return {};
  }
  const auto uid = ::geteuid();
  const auto gid = ::getegid();
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) != 0) return base::last_errno("new namespaces");
  if (!write_file("/proc/self/setgroups", "deny") ||
      !write_file("/proc/self/uid_map", "0 " + std::to_string(uid) + " 1\n") ||
      !write_file("/proc/self/gid_map", "0 " + std::to_string(gid) + " 1\n")) {
    return base::last_errno("map the user");
  }
  return {};
}

// Signals every process of the sandbox but this one.
void signal_all(IsolationMode mode, int signal) {
  if (mode != IsolationMode::kPlain) {
    (void)::kill(-1, signal);  // pid 1 is spared by the kernel
    return;
  }
  // Again until no new one appears: a process may have forked while we looked.
  std::vector<pid_t> seen;
  for (int round = 0; round < 20; ++round) {
    bool fresh = false;
    for (const auto pid : descendants_of(::getpid())) {
      if (std::find(seen.begin(), seen.end(), pid) != seen.end()) continue;
      seen.push_back(pid);
      fresh = true;
      (void)::kill(pid, signal);
    }
    if (!fresh) return;
  }
}

// The state letter of a process; 'X' when it is gone. Source: proc(5), /proc/pid/stat.
char state_of(pid_t pid) {
  const base::UniqueFd fd(::open(("/proc/" + std::to_string(pid) + "/stat").c_str(), O_RDONLY | O_CLOEXEC));
  std::string text(1024, '\0');
  const auto got = fd ? ::read(fd.get(), text.data(), text.size()) : -1;
  if (got <= 0) return 'X';
  text.resize(static_cast<std::size_t>(got));
  const auto name_end = text.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= text.size() ? 'X' : text[name_end + 2];
}

// Until every process has taken its SIGSTOP: sending it only marks them. One that sleeps in the kernel
// without heeding signals stops later, hence the limit.
void await_stopped() {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  constexpr std::string_view kStill = "TtZXx";
  while (std::chrono::steady_clock::now() < deadline) {
    const auto below = descendants_of(::getpid());
    const bool still = std::all_of(below.begin(), below.end(), [&](pid_t pid) {
      return kStill.find(state_of(pid)) != std::string_view::npos;
    });
    if (still) return;
    (void)::poll(nullptr, 0, 1);
  }
}

// Without a pid namespace nothing ends the processes for us: as their reaper we get each orphan, so
// that killing round by round ends them all.
void kill_descendants() {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (std::chrono::steady_clock::now() < deadline) {
    for (const auto pid : descendants_of(::getpid())) (void)::kill(pid, SIGKILL);
    while (true) {
      const auto got = ::waitpid(-1, nullptr, WNOHANG);
      if (got < 0 && errno == ECHILD) return;
      if (got <= 0) break;
    }
    (void)::poll(nullptr, 0, 5);
  }
}

// Envd, started again whenever it ends: a command may kill it, which must not cost the sandbox's files.
//
// Owns:    the number of its process. Threads: the init's only.
class EnvdKeeper {
 public:
  explicit EnvdKeeper(const InitConfig& config) : config_(config) {}

  // Starts it where it does not run and may. False: fork failed, the next round tries again.
  bool keep() {
    const auto now = std::chrono::steady_clock::now();
    if (pid_ > 0 || frozen_ || now < next_start_) return true;
    next_start_ = now + kRestartEvery;
    pid_ = ::fork();
    if (pid_ == 0) run();
    return pid_ > 0;
  }
  void ended(pid_t pid) {
    if (pid == pid_) pid_ = -1;
  }
  void freeze(bool frozen) { frozen_ = frozen; }
  // How long init may wait for something to happen.
  int wait_ms() const {
    constexpr int kRoundMs = 5000;
    if (pid_ > 0 || frozen_) return kRoundMs;
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(next_start_ - std::chrono::steady_clock::now());
    return static_cast<int>(std::clamp<std::int64_t>(left.count() + 1, 1, kRoundMs));
  }

 private:
  // One that ends at once (no memory, say) does not take the whole machine.
  static constexpr std::chrono::milliseconds kRestartEvery{500};

  [[noreturn]] void run() {
    (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);  // init has one thread, so "parent" is the init itself
    (void)::close(kControlFd);
    sigset_t none;
    sigemptyset(&none);
    (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::_exit(envd_main(kListenFd, config_));
  }

  const InitConfig& config_;
  pid_t pid_ = -1;
  bool frozen_ = false;
  std::chrono::steady_clock::time_point next_start_{};
};

// Reaps whatever ends.
void reap(EnvdKeeper& envd) {
  while (true) {
    const auto pid = ::waitpid(-1, nullptr, WNOHANG);
    if (pid <= 0) return;
    envd.ended(pid);
  }
}

// One message of the server. False: the server is gone.
bool obey(IsolationMode mode, EnvdKeeper& envd) {
  std::string text(kMaxControlMessage, '\0');
  const auto got = ::recv(kControlFd, text.data(), text.size(), MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  text.resize(static_cast<std::size_t>(got));
  if (text == kFreeze) {
    envd.freeze(true);
    signal_all(mode, SIGSTOP);
    await_stopped();
  }
  if (text == kThaw) {
    envd.freeze(false);
    signal_all(mode, SIGCONT);
  }
  say(kDone);
  return true;
}

int init_loop(IsolationMode mode, EnvdKeeper& envd, const base::UniqueFd& signals) {
  bool going = true;
  while (going) {
    pollfd fds[2] = {{kControlFd, POLLIN, 0}, {signals.get(), POLLIN, 0}};
    if (::poll(fds, 2, envd.wait_ms()) < 0 && errno != EINTR) break;
    if (fds[1].revents != 0) {
      signalfd_siginfo info{};
      (void)!::read(signals.get(), &info, sizeof info);
    }
    reap(envd);
    if (fds[0].revents != 0) going = obey(mode, envd);
    if (going) (void)envd.keep();
  }
  if (mode == IsolationMode::kPlain) kill_descendants();
  return 0;  // the kernel ends the rest of a pid namespace with its first process
}

int run_init(const InitConfig& config) {
  sigset_t child_signal;
  sigemptyset(&child_signal);
  sigaddset(&child_signal, SIGCHLD);
  (void)::sigprocmask(SIG_SETMASK, &child_signal, nullptr);
  const base::UniqueFd signals(::signalfd(-1, &child_signal, SFD_CLOEXEC | SFD_NONBLOCK));
  if (config.mode == IsolationMode::kPlain) {
    (void)::prctl(PR_SET_CHILD_SUBREAPER, 1);
    (void)::umask(022);
    (void)::mkdir((config.dir + "/home").c_str(), 0700);
  } else {
    (void)::umask(022);
    if (auto entered = enter_root(config.dir, config.mode, config.binds, config.id); !entered) {
      say(std::string(kFailed) + entered.error().message());
      return 1;
    }
  }
  if (config.probe) {
    say(kReady);
    return 0;
  }
  EnvdKeeper envd(config);
  if (!envd.keep()) {
    say(std::string(kFailed) + "fork");
    return 1;
  }
  say(kReady);
  return init_loop(config.mode, envd, signals);
}

}  // namespace

int sandbox_init_main(int /*argc*/, char** /*argv*/) {
  (void)::fcntl(kControlFd, F_SETFD, FD_CLOEXEC);
  (void)::fcntl(kListenFd, F_SETFD, FD_CLOEXEC);
  // Of the server's signal handling nothing must reach the sandbox's processes.
  sigset_t none;
  sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
  const auto config = receive_config();
  if (!config) {
    (void)std::fprintf(stderr, "sandbox-init is started by the sandbox server, not by people\n");
    return 2;
  }
  if (config->mode == IsolationMode::kPlain) return run_init(*config);
  if (auto entered = enter_namespaces(config->mode); !entered) {
    say(std::string(kFailed) + entered.error().message());
    return 1;
  }
  const auto inner = ::fork();
  if (inner < 0) return 1;
  if (inner == 0) {
    (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::_exit(run_init(*config));
  }
  // Only waits, so that the server has a child to wait for; the sandbox's lifeline is the inner one's.
  (void)::close(kControlFd);
  (void)::close(kListenFd);
  int status = 0;
  while (::waitpid(inner, &status, 0) < 0 && errno == EINTR) {
  }
  // The namespace of its children is gone: what wants to start one at the end (LeakSanitizer) could not.
  ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

}  // namespace nearbox::sandbox_server
