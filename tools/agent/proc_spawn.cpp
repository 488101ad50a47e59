// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_spawn.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/agent/proc_pty.h"

namespace nearbox::agent {
namespace {

#if !defined(SYS_close_range)
#define SYS_close_range 436
#endif
#if !defined(SYS_pidfd_open)
#define SYS_pidfd_open 434
#endif

constexpr int kFirstSpareFd = 10;
constexpr int kErrorFd = 3;  // close-on-exec: closed without a word means the program runs
constexpr rlim_t kMaxClosedOneByOne = 65536;
constexpr int kTextBusyTries = 40;
constexpr timespec kTextBusyPause{0, 5'000'000};
constexpr int kOomScore = 100;  // as envd gives commands; see e2b-protocol, process semantics

enum class Stage : int { kSetup, kUser, kDirectory, kExec };
struct Failure {
  Stage stage{};
  int error = 0;
};

// All that the child needs, as plain pointers made before fork().
struct ChildPlan {
  std::vector<const char*> programs;
  std::vector<char*> argv;
  std::vector<char*> script_argv;  // /bin/sh PROGRAM args: what execvp does for a script without "#!"
  std::vector<char*> env;
  const char* cwd = nullptr;
  const char* cgroup = nullptr;
  bool cwd_optional = false;
  bool switch_user = false;
  uid_t uid = 0;
  gid_t gid = 0;
  const gid_t* groups = nullptr;
  std::size_t group_count = 0;
  bool pty = false;
  int in = -1, out = -1, err = -1, report = -1;
  rlimit nofile{};
  bool raise_oom = false;
  bool close_one_by_one = false;
};

// ---- in the child: async-signal-safe calls only -------------------------------------------------

[[noreturn]] void give_up(int report, Stage stage) {
  const Failure failure{stage, errno};
  const auto written = ::write(report, &failure, sizeof failure);
  ::_exit(written == sizeof failure ? 127 : 126);
}

void write_file(const char* path, const char* text, std::size_t size) {
  const int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  (void)!::write(fd, text, size);
  ::close(fd);
}

// Leaves 0, 1, 2 and kErrorFd open. First of all, so that no descriptor of another thread (a file
// being written, which then could not be executed: ETXTBSY) lives on here.
void arrange_descriptors(ChildPlan& plan) {
  const int report = ::fcntl(plan.report, F_DUPFD_CLOEXEC, kFirstSpareFd);
  if (report < 0) give_up(plan.report, Stage::kSetup);
  const int in = ::fcntl(plan.in, F_DUPFD_CLOEXEC, kFirstSpareFd);
  const int out = ::fcntl(plan.out, F_DUPFD_CLOEXEC, kFirstSpareFd);
  const int err = ::fcntl(plan.err, F_DUPFD_CLOEXEC, kFirstSpareFd);
  if (in < 0 || out < 0 || err < 0) give_up(report, Stage::kSetup);
  if (::dup2(in, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(err, 2) < 0) give_up(report, Stage::kSetup);
  if (::dup3(report, kErrorFd, O_CLOEXEC) < 0) give_up(report, Stage::kSetup);
  plan.report = kErrorFd;
  if (!plan.close_one_by_one && ::syscall(SYS_close_range, kErrorFd + 1, ~0U, 0) == 0) return;
  const auto limit = static_cast<int>(std::min(plan.nofile.rlim_max, kMaxClosedOneByOne));
  for (int fd = kErrorFd + 1; fd < limit; ++fd) ::close(fd);
}

void reset_signals() {
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) (void)::sigaction(signal, &action, nullptr);
}

// Raw calls: the C library's own tell all threads of the process, which are not here any more.
void become_user(const ChildPlan& plan) {
  if (!plan.switch_user) return;
  if (::syscall(SYS_setgroups, plan.group_count, plan.groups) != 0) give_up(plan.report, Stage::kUser);
  if (::syscall(SYS_setresgid, plan.gid, plan.gid, plan.gid) != 0) give_up(plan.report, Stage::kUser);
  if (::syscall(SYS_setresuid, plan.uid, plan.uid, plan.uid) != 0) give_up(plan.report, Stage::kUser);
}

// Another thread's child may hold the file open for writing until its own exec: wait a little.
void execute(const char* program, char* const* argv, char* const* env) {
  for (int tries = 0; tries < kTextBusyTries; ++tries) {
    ::execve(program, argv, env);
    if (errno != ETXTBSY) return;
    ::nanosleep(&kTextBusyPause, nullptr);
  }
}

[[noreturn]] void run_program(ChildPlan& plan) {
  int worst = ENOENT;
  for (const char* program : plan.programs) {
    execute(program, plan.argv.data(), plan.env.data());
    if (errno == ENOEXEC) {
      plan.script_argv[1] = const_cast<char*>(program);  // execve takes char* const*, and reads only
      execute("/bin/sh", plan.script_argv.data(), plan.env.data());
    }
    if (errno == EACCES) worst = EACCES;  // another directory of PATH may still have it
    if (errno == ENOENT || errno == ENOTDIR || errno == EACCES) continue;
    give_up(plan.report, Stage::kExec);
  }
  errno = worst;
  give_up(plan.report, Stage::kExec);
}

[[noreturn]] void child(ChildPlan& plan) {
  reset_signals();
  arrange_descriptors(plan);
  if (::setsid() < 0) give_up(plan.report, Stage::kSetup);
  if (plan.pty && ::ioctl(0, TIOCSCTTY, 0) != 0) give_up(plan.report, Stage::kSetup);
  if (plan.cgroup != nullptr) write_file(plan.cgroup, "0", 1);
  if (plan.raise_oom) write_file("/proc/self/oom_score_adj", "100", 3);
  (void)::setrlimit(RLIMIT_NOFILE, &plan.nofile);
  ::umask(022);
  become_user(plan);
  if (::chdir(plan.cwd) != 0) {
    if (!plan.cwd_optional || ::chdir("/") != 0) give_up(plan.report, Stage::kDirectory);
  }
  sigset_t none;
  sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
  run_program(plan);
}

// ---- in the parent ------------------------------------------------------------------------------

struct Pipes {
  base::UniqueFd child_in, child_out, child_err;
  Spawned spawned;
};

base::Result<void> make_pipe(base::UniqueFd& read_end, base::UniqueFd& write_end) {
  int fds[2] = {-1, -1};
  if (::pipe2(fds, O_CLOEXEC) != 0) return base::last_errno("pipe");
  read_end.reset(fds[0]);
  write_end.reset(fds[1]);
  return {};
}

base::Result<void> set_nonblocking(const base::UniqueFd& fd) {
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) return base::last_errno("fcntl");
  return {};
}

base::Result<void> open_input(const SpawnSpec& spec, Pipes& pipes) {
  if (spec.input == SpawnInput::kPipe) {
    if (auto made = make_pipe(pipes.child_in, pipes.spawned.in); !made) return made;
    return set_nonblocking(pipes.spawned.in);
  }
  pipes.child_in.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (pipes.child_in) return {};
  base::UniqueFd closed;  // no /dev here: a pipe that nobody writes to reads as empty, too
  return make_pipe(pipes.child_in, closed);
}

base::Result<Pipes> open_pipes(const SpawnSpec& spec) {
  Pipes pipes;
  if (spec.input == SpawnInput::kPty) {
    auto pty = open_pty(spec.account.uid, spec.account.gid, spec.rows, spec.cols);
    if (!pty) return std::move(pty).error();
    pipes.spawned.out = std::move(pty->master);
    pipes.child_in = std::move(pty->slave);
    return pipes;
  }
  if (auto made = open_input(spec, pipes); !made) return std::move(made).error();
  if (auto made = make_pipe(pipes.spawned.out, pipes.child_out); !made) return std::move(made).error();
  if (auto made = make_pipe(pipes.spawned.err, pipes.child_err); !made) return std::move(made).error();
  if (auto set = set_nonblocking(pipes.spawned.out); !set) return std::move(set).error();
  if (auto set = set_nonblocking(pipes.spawned.err); !set) return std::move(set).error();
  return pipes;
}

std::vector<char*> pointers(const std::vector<std::string>& texts, std::size_t from = 0) {
  std::vector<char*> out;
  out.reserve(texts.size() + 3);
  for (std::size_t i = from; i < texts.size(); ++i) out.push_back(const_cast<char*>(texts[i].c_str()));
  return out;
}

bool oom_below_commands() {
  const std::string text = read_text("/proc/self/oom_score_adj");
  return !text.empty() && std::atoi(text.c_str()) < kOomScore;
}

ChildPlan make_plan(const SpawnSpec& spec, const Pipes& pipes, int report) {
  ChildPlan plan;
  for (const auto& program : spec.programs) plan.programs.push_back(program.c_str());
  plan.argv = pointers(spec.argv);
  plan.argv.push_back(nullptr);
  plan.script_argv = {const_cast<char*>("sh"), nullptr};
  for (char* arg : pointers(spec.argv, 1)) plan.script_argv.push_back(arg);
  plan.script_argv.push_back(nullptr);
  plan.env = pointers(spec.env);
  plan.env.push_back(nullptr);
  plan.cwd = spec.cwd.c_str();
  plan.cgroup = spec.cgroup_procs.empty() ? nullptr : spec.cgroup_procs.c_str();
  plan.cwd_optional = spec.cwd_optional;
  plan.switch_user = spec.switch_user;
  plan.uid = spec.account.uid;
  plan.gid = spec.account.gid;
  plan.groups = spec.account.groups.data();
  plan.group_count = spec.account.groups.size();
  plan.pty = spec.input == SpawnInput::kPty;
  plan.in = pipes.child_in.get();
  plan.out = plan.pty ? plan.in : pipes.child_out.get();
  plan.err = plan.pty ? plan.in : pipes.child_err.get();
  plan.report = report;
  if (::getrlimit(RLIMIT_NOFILE, &plan.nofile) != 0) plan.nofile = {1024, 1024};
  if (spec.nofile_soft != 0) plan.nofile.rlim_cur = std::min<rlim_t>(spec.nofile_soft, plan.nofile.rlim_max);
  plan.raise_oom = oom_below_commands();
  plan.close_one_by_one = base::fault::active("procs.no_close_range");
  return plan;
}

// Our handlers must not run in the child before it has reset them: no signal is let through
// between fork() and there.
pid_t fork_child(ChildPlan& plan) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  (void)::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  if (pid == 0) child(plan);
  const int error = errno;
  (void)::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  errno = error;
  return pid;
}

base::Error describe(const SpawnSpec& spec, const Failure& failure) {
  switch (failure.stage) {
    case Stage::kSetup:
      return base::errno_error(failure.error, "set up the process");
    case Stage::kUser:
      return base::errno_error(failure.error, "become user " + spec.account.name);
    case Stage::kDirectory:
      return base::errno_error(failure.error, "working directory " + spec.cwd);
    case Stage::kExec:
      break;
  }
  const std::string& named = spec.programs.size() == 1 ? spec.programs.front() : spec.argv.front();
  return base::errno_error(failure.error, "run " + named);
}

// Waits for the child's exec, or for its word on why there is none.
base::Result<void> await_exec(const SpawnSpec& spec, int report) {
  pollfd waiting{report, POLLIN, 0};
  int ready = 0;
  do {
    ready = ::poll(&waiting, 1, kExecTimeoutMs);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) return base::errno_error(ETIMEDOUT, "run " + spec.argv.front());
  Failure failure{};
  ssize_t got = 0;
  do {
    got = ::read(report, &failure, sizeof failure);
  } while (got < 0 && errno == EINTR);
  if (got == 0) return {};
  if (got != sizeof failure) return base::errno_error(EIO, "set up the process");
  return describe(spec, failure);
}

}  // namespace

base::Result<Spawned> spawn(const SpawnSpec& spec) {
  auto pipes = open_pipes(spec);
  if (!pipes) return std::move(pipes).error();
  base::UniqueFd report_in;
  base::UniqueFd report_out;
  if (auto made = make_pipe(report_in, report_out); !made) return std::move(made).error();
  ChildPlan plan = make_plan(spec, *pipes, report_out.get());
  const pid_t pid = fork_child(plan);
  if (pid < 0) return base::last_errno("fork");
  report_out.reset();
  pipes->child_in.reset();
  pipes->child_out.reset();
  pipes->child_err.reset();
  if (auto running = await_exec(spec, report_in.get()); !running) {
    (void)::kill(pid, SIGKILL);
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) continue;
    return std::move(running).error();
  }
  Spawned& spawned = pipes->spawned;
  spawned.pid = pid;
  if (!base::fault::active("procs.no_pidfd")) {
    spawned.pidfd.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  }
  return std::move(spawned);
}

}  // namespace nearbox::agent
