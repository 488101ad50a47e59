// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/sandbox.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/sandbox_server/proc_tree.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

constexpr std::chrono::seconds kLaunchTimeout{20};
constexpr std::chrono::seconds kCommandTimeout{10};
constexpr std::chrono::seconds kEndTimeout{15};
constexpr std::chrono::seconds kKillTimeout{5};
constexpr std::chrono::milliseconds kEndLook{10};
constexpr int kBacklog = 512;
constexpr const char* kSocketName = "envd.sock";

// Unix socket addresses are short: the directory is named by its descriptor.
sockaddr_un socket_address(int dir_fd) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const auto path = "/proc/self/fd/" + std::to_string(dir_fd) + "/" + kSocketName;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return address;
}

base::Result<base::UniqueFd> listen_unix(int dir_fd) {
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto address = socket_address(dir_fd);
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), kBacklog) != 0) {
    return base::last_errno("listen for envd");
  }
  return fd;
}

// The init's environment: of the server's own only the search path. Keys must not get in.
std::vector<std::string> init_environment() {
  std::vector<std::string> out{"LANG=C.UTF-8"};
  for (const char* name : {"PATH", "NEARBOX_FAULT_FILE", "ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"}) {
    if (const char* value = std::getenv(name)) out.push_back(std::string(name) + "=" + value);
  }
  return out;
}

base::Result<pid_t> spawn_init(const Launcher& launcher, int control_fd, int listen_fd) {
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  // Above the two fixed numbers first: one could be the other's target.
  constexpr int kSpare = 60;
  ::posix_spawn_file_actions_adddup2(&actions, control_fd, kSpare);
  if (listen_fd >= 0) ::posix_spawn_file_actions_adddup2(&actions, listen_fd, kSpare + 1);
  ::posix_spawn_file_actions_adddup2(&actions, kSpare, kControlFd);
  if (listen_fd >= 0) ::posix_spawn_file_actions_adddup2(&actions, kSpare + 1, kListenFd);
  ::posix_spawn_file_actions_addclose(&actions, kSpare);
  if (listen_fd >= 0) ::posix_spawn_file_actions_addclose(&actions, kSpare + 1);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  // Nothing of a sandbox writes to the server's stdout, which scripts read.
  ::posix_spawn_file_actions_adddup2(&actions, 2, 1);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  auto environment = init_environment();
  std::vector<char*> envp;
  for (auto& entry : environment) envp.push_back(entry.data());
  envp.push_back(nullptr);
  std::array<std::string, 2> words{"nearbox", "sandbox-init"};
  std::array<char*, 3> argv{words[0].data(), words[1].data(), nullptr};
  pid_t pid = -1;
  const int err =
      ::posix_spawn(&pid, launcher.init_program.c_str(), &actions, &attributes, argv.data(), envp.data());
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  if (err != 0) return base::errno_error(err, "start " + launcher.init_program);
  return pid;
}

// Waits for the end of a child and reaps it. False: it still runs.
bool await_end(pid_t pid, std::chrono::milliseconds timeout) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + timeout;
  base::UniqueFd handle;
  if (!base::fault::active("sandbox_server.no_pidfd")) {
    handle.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));  // 5.3; seccomp filters refuse it
  }
  while (true) {
    const auto got = ::waitpid(pid, nullptr, WNOHANG);
    if (got == pid || (got < 0 && errno != EINTR)) return true;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return false;
    // Without a descriptor that tells of its end it is asked again and again.
    pollfd ended{handle.get(), POLLIN, 0};
    (void)::poll(&ended, handle ? 1 : 0,
                 static_cast<int>(handle ? left.count() : std::min(left, kEndLook).count()));
  }
}

}  // namespace

base::Result<std::unique_ptr<InitProcess>> InitProcess::launch(const Launcher& launcher,
                                                               const InitConfig& config, int listen_fd) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return base::last_errno("socketpair");
  base::UniqueFd theirs(ends[1]);
  std::unique_ptr<InitProcess> out(new InitProcess());
  out->control_.reset(ends[0]);
  const auto text = encode_init_config(config);
  if (text.size() > kMaxControlMessage) return base::errno_error(E2BIG, "environment too large");
  const auto pid = spawn_init(launcher, theirs.get(), listen_fd);
  if (!pid) return pid.error();
  out->pid_ = *pid;
  theirs.reset();
  if (::send(out->control_.get(), text.data(), text.size(), MSG_NOSIGNAL) < 0)
    return base::last_errno("configure init");
  const auto answer = out->receive(kLaunchTimeout);
  if (!answer) return answer.error();
  if (*answer == kReady) return out;
  const bool failed = answer->rfind(kFailed, 0) == 0;
  return base::errno_error(EPERM,
                           failed ? answer->substr(kFailed.size()) : "the sandbox's init did not start");
}

InitProcess::~InitProcess() {
  if (pid_ < 0 || reaped_) return;
  control_.reset();  // its lifeline: it ends, and with it everything below
  if (await_end(pid_, kEndTimeout)) return;
  (void)::kill(pid_, SIGKILL);
  (void)await_end(pid_, kKillTimeout);  // else one that no signal ends; our own end leaves it to init
}

base::Result<std::string> InitProcess::receive(std::chrono::milliseconds timeout) {
  pollfd fd{control_.get(), POLLIN, 0};
  int ready = 0;
  while ((ready = ::poll(&fd, 1, static_cast<int>(timeout.count()))) < 0 && errno == EINTR) {
  }
  if (ready == 0) return base::errno_error(ETIMEDOUT, "the sandbox's init does not answer");
  std::string text(kMaxControlMessage, '\0');
  const auto got = ::recv(control_.get(), text.data(), text.size(), MSG_DONTWAIT);
  if (got < 0) return base::last_errno("read from init");
  text.resize(static_cast<std::size_t>(got));
  return text;
}

base::Result<void> InitProcess::command(std::string_view text) {
  if (::send(control_.get(), text.data(), text.size(), MSG_NOSIGNAL) < 0)
    return base::last_errno("tell init");
  const auto answer = receive(kCommandTimeout);
  if (!answer) return answer.error();
  if (*answer != kDone) return base::errno_error(EIO, "the sandbox's init has ended");
  return {};
}

bool InitProcess::running() {
  if (!reaped_ && ::waitpid(pid_, nullptr, WNOHANG) == pid_) reaped_ = true;
  return !reaped_;
}

Sandbox::Sandbox(SandboxSpec spec, std::string id, std::string dir)
    : spec_(std::move(spec)), id_(std::move(id)), dir_(std::move(dir)) {
  constexpr std::size_t kTokenBytes = 32;
  if (spec_.secure) token_ = base::Secret("ea_" + hex(random_bytes(kTokenBytes)));
  if (!spec_.public_traffic) traffic_token_ = base::Secret("ta_" + hex(random_bytes(kTokenBytes)));
}

base::Result<std::shared_ptr<Sandbox>> Sandbox::create(const Launcher& launcher, SandboxSpec spec,
                                                       std::string id, std::string dir) {
  std::shared_ptr<Sandbox> out(new Sandbox(std::move(spec), std::move(id), std::move(dir)));
  if (auto launched = out->launch(launcher); !launched) return std::move(launched).error();
  return out;
}

base::Result<void> Sandbox::launch(const Launcher& launcher) {
  dir_fd_.reset(::open(dir_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!dir_fd_) return base::last_errno("open " + dir_);
  const auto listener = listen_unix(dir_fd_.get());
  if (!listener) return listener.error();
  InitConfig config;
  config.id = id_;
  config.dir = dir_;
  config.template_id = spec_.template_id;
  config.mode = launcher.mode;
  config.token = token_.reveal();
  config.envs = spec_.envs;
  config.binds = spec_.binds;
  auto init = InitProcess::launch(launcher, config, listener->get());
  if (!init) return std::move(init).error();
  base::MutexLock op(op_mu_);
  init_ = std::move(*init);
  base::MutexLock lock(mu_);
  const auto now = WallClock::now();
  state_ = {State::kRunning, now, now + spec_.timeout};
  return {};
}

Sandbox::Snapshot Sandbox::snapshot() const {
  base::MutexLock lock(mu_);
  return state_;
}

void Sandbox::break_connections() {
  for (const int fd : connections_) (void)::shutdown(fd, SHUT_RDWR);
}

base::Result<void> Sandbox::pause() {
  base::MutexLock op(op_mu_);
  if (snapshot().state != State::kRunning) return base::errno_error(ESRCH, "not running");
  if (auto frozen = init_->command(kFreeze); !frozen) return frozen;
  base::MutexLock lock(mu_);
  state_.state = State::kPaused;
  state_.ends = WallClock::now();
  break_connections();
  return {};
}

base::Result<bool> Sandbox::resume(std::chrono::seconds timeout) {
  base::MutexLock op(op_mu_);
  const auto before = snapshot();
  if (before.state == State::kEnded) return base::errno_error(ESRCH, "not running");
  if (before.state == State::kRunning) {
    if (auto set = set_timeout(timeout, true); !set) return std::move(set).error();
    return false;
  }
  if (auto thawed = init_->command(kThaw); !thawed) return std::move(thawed).error();
  base::MutexLock lock(mu_);
  const auto now = WallClock::now();
  state_ = {State::kRunning, now, now + timeout};
  return true;
}

bool Sandbox::kill() {
  base::MutexLock op(op_mu_);
  {
    base::MutexLock lock(mu_);
    if (state_.state == State::kEnded) return false;
    state_.state = State::kEnded;
    state_.ends = WallClock::now();
    break_connections();
  }
  init_.reset();
  return true;
}

base::Result<void> Sandbox::set_timeout(std::chrono::seconds timeout, bool only_later) {
  base::MutexLock lock(mu_);
  if (state_.state != State::kRunning) return base::errno_error(ESRCH, "not running");
  const auto ends = WallClock::now() + timeout;
  if (!only_later || ends > state_.ends) state_.ends = ends;
  return {};
}

bool Sandbox::alive() {
  base::MutexLock op(op_mu_);
  return init_ && init_->running();
}

base::Result<base::UniqueFd> Sandbox::connect_envd() const {
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto address = socket_address(dir_fd_.get());
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::last_errno("connect to envd");
  }
  return fd;
}

bool Sandbox::listens(std::uint16_t port) {
  pid_t init = -1;
  {
    base::MutexLock op(op_mu_);
    if (!init_ || !init_->running()) return false;
    init = init_->pid();
  }
  return descendants_listen(init, port);
}

Sandbox::Connection::Connection(Sandbox& sandbox, int fd) : sandbox_(sandbox), fd_(fd), accepted_(false) {
  base::MutexLock lock(sandbox_.mu_);
  accepted_ = sandbox_.state_.state == State::kRunning;
  if (accepted_) sandbox_.connections_.insert(fd_);
}

Sandbox::Connection::~Connection() {
  if (!accepted_) return;
  base::MutexLock lock(sandbox_.mu_);
  sandbox_.connections_.erase(sandbox_.connections_.find(fd_));
}

}  // namespace nearbox::sandbox_server
