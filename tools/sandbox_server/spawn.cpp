// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/spawn.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <string>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "tools/sandbox_server/processes.h"

namespace nearbox::sandbox_server {
namespace {

struct Pipe {
  base::UniqueFd read;
  base::UniqueFd write;
};

base::Result<Pipe> make_pipe() {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) return base::last_errno("pipe");
  return Pipe{base::UniqueFd(fds[0]), base::UniqueFd(fds[1])};
}

// Everything the child needs, made before fork: it may then call async-signal-safe functions only.
struct Plan {
  std::vector<char*> argv;
  std::vector<char*> envp;
  const char* directory = nullptr;
  std::array<int, 3> stdio{-1, -1, -1};
  int terminal = -1;
  int report = -1;
  uid_t uid = 0;
  gid_t gid = 0;
  const std::vector<gid_t>* groups = nullptr;
  bool switch_ids = false;
  bool nested_userns = false;
  std::string uid_map;
  std::string gid_map;
};

// What the child tells us when it could not start the program.
struct Report {
  int directory = 0;  // 1: entering the directory failed
  int err = 0;
};

bool put(const char* path, std::string_view text) {
  const int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool done = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  (void)::close(fd);
  return done;
}

[[noreturn]] void give_up(const Plan& plan, int directory) {
  const Report report{directory, errno};
  (void)!::write(plan.report, &report, sizeof report);
  ::_exit(126);
}

// Runs in the child. Async-signal-safe: no allocation, no locks.
[[noreturn]] void run_child(const Plan& plan) {
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    (void)::sigaction(number, &action, nullptr);
  }
  sigset_t none;
  sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (plan.terminal >= 0) {
    (void)::setsid();
    (void)::ioctl(plan.terminal, TIOCSCTTY, 0);
  } else {
    // A group of its own: "kill 0" in a command must not reach envd and the other commands.
    (void)::setpgid(0, 0);
  }
  // Above the numbers that are about to be replaced.
  std::array<int, 3> source{};
  for (std::size_t i = 0; i < source.size(); ++i) {
    source[i] = ::fcntl(plan.stdio[i], F_DUPFD_CLOEXEC, 10);
    if (source[i] < 0) give_up(plan, 0);
  }
  for (int i = 0; i < 3; ++i) {
    if (::dup2(source[static_cast<std::size_t>(i)], i) < 0) give_up(plan, 0);
  }
  (void)::umask(022);
  (void)put("/proc/self/oom_score_adj", "100");
  if (plan.switch_ids) {
    if (::setgroups(plan.groups->size(), plan.groups->data()) != 0 || ::setgid(plan.gid) != 0 ||
        ::setuid(plan.uid) != 0) {
      give_up(plan, 0);
    }
  }
  if (plan.nested_userns) {
    if (::unshare(CLONE_NEWUSER) != 0 || !put("/proc/self/setgroups", "deny") ||
        !put("/proc/self/uid_map", plan.uid_map) || !put("/proc/self/gid_map", plan.gid_map)) {
      give_up(plan, 0);
    }
  }
  if (::chdir(plan.directory) != 0) give_up(plan, 1);
  ::execve("/bin/sh", plan.argv.data(), plan.envp.data());
  give_up(plan, 0);
}

base::Result<void> open_terminal(PtySize size, Child& child, base::UniqueFd& slave, const User& user) {
  child.terminal.reset(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  std::array<char, 128> name{};
  if (!child.terminal || ::grantpt(child.terminal.get()) != 0 || ::unlockpt(child.terminal.get()) != 0 ||
      ::ptsname_r(child.terminal.get(), name.data(), name.size()) != 0) {
    return base::last_errno("open a pty");
  }
  slave.reset(::open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!slave) return base::last_errno("open a pty");
  if (user.switch_ids) (void)!::fchown(slave.get(), user.uid, user.gid);
  winsize ws{size.rows, size.columns, 0, 0};
  (void)::ioctl(child.terminal.get(), TIOCSWINSZ, &ws);
  return {};
}

// The child's ends; they close when this goes.
struct Ends {
  base::UniqueFd in;
  base::UniqueFd out;
  base::UniqueFd err;
};

base::Result<void> open_pipes(bool with_stdin, Child& child, Ends& ends) {
  if (with_stdin) {
    auto in = make_pipe();
    if (!in) return std::move(in).error();
    ends.in = std::move(in->read);
    child.in = std::move(in->write);
  } else {
    ends.in.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!ends.in) return base::last_errno("open /dev/null");
  }
  auto out = make_pipe();
  if (!out) return std::move(out).error();
  auto err = make_pipe();
  if (!err) return std::move(err).error();
  ends.out = std::move(out->write);
  child.out = std::move(out->read);
  ends.err = std::move(err->write);
  child.err = std::move(err->read);
  return {};
}

base::Result<void> await_exec(const base::UniqueFd& report, const ProcessSpec& spec, pid_t pid) {
  Report failure;
  ssize_t got = 0;
  while ((got = ::read(report.get(), &failure, sizeof failure)) < 0 && errno == EINTR) {
  }
  if (got == 0) return {};
  (void)::waitpid(pid, nullptr, 0);
  if (got > 0 && failure.directory != 0)
    return base::errno_error(EINVAL, "cwd '" + spec.directory + "' cannot be entered");
  return base::errno_error(got > 0 ? failure.err : EIO, "start a process");
}

}  // namespace

base::Result<Child> spawn_child(const ProcessSpec& spec) {
  struct stat st {};
  if (::stat(spec.directory.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) {
    return base::errno_error(EINVAL, "cwd '" + spec.directory + "' does not exist or is no directory");
  }
  Child child;
  Ends ends;
  Plan plan;
  if (spec.pty) {
    base::UniqueFd slave;
    if (auto opened = open_terminal(*spec.pty, child, slave, spec.user); !opened)
      return std::move(opened).error();
    plan.stdio = {slave.get(), slave.get(), slave.get()};
    plan.terminal = slave.get();
    ends.in = std::move(slave);
  } else {
    if (auto opened = open_pipes(spec.with_stdin, child, ends); !opened) return std::move(opened).error();
    plan.stdio = {ends.in.get(), ends.out.get(), ends.err.get()};
  }
  auto report = make_pipe();
  if (!report) return std::move(report).error();
  std::vector<std::string> words = {"sh", "-c", "exec \"$@\"", "sh", spec.command};
  words.insert(words.end(), spec.arguments.begin(), spec.arguments.end());
  for (auto& word : words) plan.argv.push_back(word.data());
  plan.argv.push_back(nullptr);
  for (const auto& entry : spec.environment) plan.envp.push_back(const_cast<char*>(entry.c_str()));
  plan.envp.push_back(nullptr);
  plan.directory = spec.directory.c_str();
  plan.report = report->write.get();
  plan.uid = spec.user.uid;
  plan.gid = spec.user.gid;
  plan.groups = &spec.user.groups;
  plan.switch_ids = spec.user.switch_ids;
  plan.nested_userns = spec.user.nested_userns;
  plan.uid_map = std::to_string(spec.user.uid) + " 0 1\n";
  plan.gid_map = std::to_string(spec.user.gid) + " 0 1\n";
  child.pid = ::fork();
  if (child.pid < 0) return base::last_errno("fork");
  if (child.pid == 0) run_child(plan);
  report->write.reset();
  child.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, child.pid, 0)));
  if (auto started = await_exec(report->read, spec, child.pid); !started) return std::move(started).error();
  if (!child.pidfd) return base::last_errno("pidfd");
  return child;
}

}  // namespace nearbox::sandbox_server
