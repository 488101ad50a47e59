// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/sandbox.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/sandbox_server/proc_tree.h"
#include "tools/sandbox_server/text.h"
#include "tools/sandbox_server/trash.h"

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
  // Above all four numbers first: one could be another's target.
  const int spare = std::max({control_fd, listen_fd, kListenFd}) + 1;
  ::posix_spawn_file_actions_adddup2(&actions, control_fd, spare);
  if (listen_fd >= 0) ::posix_spawn_file_actions_adddup2(&actions, listen_fd, spare + 1);
  ::posix_spawn_file_actions_adddup2(&actions, spare, kControlFd);
  if (listen_fd >= 0) ::posix_spawn_file_actions_adddup2(&actions, spare + 1, kListenFd);
  ::posix_spawn_file_actions_addclose(&actions, spare);
  if (listen_fd >= 0) ::posix_spawn_file_actions_addclose(&actions, spare + 1);
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

// An overlay's work directories have no permissions at all: without a server to do it, their owner
// could not remove the sandbox's files. The next overlay makes them anew.
void open_up(const std::string& work) {
  std::error_code ec;
  for (const auto& entry : std::filesystem::directory_iterator(work, ec)) {
    (void)::chmod((entry.path() / "work").c_str(), 0700);
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

Sandbox::Sandbox(const Launcher& launcher, SandboxSpec spec, std::string id, std::string dir)
    : launcher_(launcher), spec_(std::move(spec)), id_(std::move(id)), dir_(std::move(dir)) {}

base::Result<std::shared_ptr<Sandbox>> Sandbox::create(const Launcher& launcher, SandboxSpec spec,
                                                       std::string id, std::string dir) {
  std::shared_ptr<Sandbox> out(new Sandbox(launcher, std::move(spec), std::move(id), std::move(dir)));
  constexpr std::size_t kTokenBytes = 32;
  if (out->spec_.secure) out->token_ = base::Secret("ea_" + hex(random_bytes(kTokenBytes)));
  if (!out->spec_.public_traffic) out->traffic_token_ = base::Secret("ta_" + hex(random_bytes(kTokenBytes)));
  base::MutexLock op(out->op_mu_);
  if (auto launched = out->launch(); !launched) return std::move(launched).error();
  out->become(State::kRunning, out->spec_.timeout);
  if (!out->spec_.auto_pause) return out;
  // From here on a crash of the server must not cost its files.
  if (auto kept = out->keep_record(out->snapshot().ends); !kept) {
    out->init_.reset();
    return std::move(kept).error();
  }
  return out;
}

std::shared_ptr<Sandbox> Sandbox::restore(const Launcher& launcher, SandboxRecord record, std::string dir) {
  auto with_mode = launcher;
  with_mode.mode = record.mode;
  std::shared_ptr<Sandbox> out(
      new Sandbox(with_mode, std::move(record.spec), std::move(record.id), std::move(dir)));
  out->token_ = std::move(record.token);
  out->traffic_token_ = std::move(record.traffic_token);
  base::MutexLock lock(out->mu_);
  out->state_ = {State::kPaused, record.started, std::min(record.ends, WallClock::now()), true};
  return out;
}

Sandbox::Changing::Changing(Sandbox& sandbox) : sandbox_(sandbox) {
  base::MutexLock lock(sandbox_.mu_);
  sandbox_.changing_ = true;
}

Sandbox::Changing::~Changing() {
  base::MutexLock lock(sandbox_.mu_);
  sandbox_.changing_ = false;
}

// Starts the init in the sandbox's directory, which may hold what an earlier one left.
base::Result<void> Sandbox::launch() {
  // Opened once: whoever connects to envd reads it without a lock.
  if (!dir_fd_) dir_fd_.reset(::open(dir_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!dir_fd_) return base::last_errno("open " + dir_);
  (void)::unlinkat(dir_fd_.get(), kSocketName, 0);
  if (launcher_.mode != IsolationMode::kPlain) {
    const base::UniqueFd here(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    (void)remove_tree(here.get(), "tmp");  // a boot empties it
  }
  const auto listener = listen_unix(dir_fd_.get());
  if (!listener) return listener.error();
  InitConfig config;
  config.id = id_;
  config.dir = dir_;
  config.template_id = spec_.template_id;
  config.mode = launcher_.mode;
  config.token = token_.reveal();
  config.envs = spec_.envs;
  config.binds = spec_.binds;
  auto init = InitProcess::launch(launcher_, config, listener->get());
  if (!init) return std::move(init).error();
  init_ = std::move(*init);
  return {};
}

// Sets the state; with a timeout the sandbox starts now.
void Sandbox::become(State state, std::optional<std::chrono::seconds> timeout) {
  const bool stored = state == State::kPaused && !init_;
  base::MutexLock lock(mu_);
  const auto now = WallClock::now();
  state_ = {state, timeout ? now : state_.started, timeout ? now + *timeout : now, stored};
  if (state != State::kRunning) break_connections();
}

base::Result<void> Sandbox::keep_record(WallClock::time_point ends) {
  const auto now = snapshot();
  return write_record(record_path(), {id_, spec_, launcher_.mode, token_, traffic_token_, now.started, ends});
}

Sandbox::Snapshot Sandbox::snapshot() const {
  base::MutexLock lock(mu_);
  return state_;
}

void Sandbox::break_connections() {
  for (const int fd : connections_) (void)::shutdown(fd, SHUT_RDWR);
}

base::Result<void> Sandbox::pause(PauseMode mode) {
  base::MutexLock op(op_mu_);
  const Changing changing(*this);
  if (snapshot().state != State::kRunning) return base::errno_error(ESRCH, "not running");
  // First what must not fail once the processes are gone.
  if (auto kept = keep_record(WallClock::now()); !kept) return kept;
  if (mode == PauseMode::kFilesOnly) {
    init_.reset();
  } else if (auto frozen = init_->command(kFreeze); !frozen) {
    return frozen;
  }
  become(State::kPaused, std::nullopt);
  return {};
}

base::Result<bool> Sandbox::resume(std::chrono::seconds timeout, ResumeMode mode) {
  base::MutexLock op(op_mu_);
  const Changing changing(*this);
  const auto before = snapshot();
  if (before.state == State::kEnded) return base::errno_error(ESRCH, "not running");
  if (before.state == State::kRunning) {
    if (auto set = set_timeout(timeout, true); !set) return std::move(set).error();
    return false;
  }
  if (init_ && mode == ResumeMode::kReboot) init_.reset();
  if (init_) {
    if (auto thawed = init_->command(kThaw); !thawed) return std::move(thawed).error();
  } else if (auto launched = launch(); !launched) {
    become(State::kPaused, std::nullopt);
    return std::move(launched).error();
  }
  become(State::kRunning, timeout);
  if (!spec_.auto_pause) (void)::unlink(record_path().c_str());
  return true;
}

bool Sandbox::kill() {
  base::MutexLock op(op_mu_);
  const Changing changing(*this);
  if (snapshot().state == State::kEnded) return false;
  become(State::kEnded, std::nullopt);
  (void)::unlink(record_path().c_str());
  init_.reset();
  return true;
}

bool Sandbox::put_away() {
  base::MutexLock op(op_mu_);
  const Changing changing(*this);
  const auto now = snapshot();
  const bool keep = now.state == State::kPaused || (now.state == State::kRunning && spec_.auto_pause);
  if (!keep) return false;
  // An older record will do where a new one cannot be written: what counts is the files.
  const auto kept = keep_record(now.state == State::kPaused ? now.ends : WallClock::now());
  if (!kept && ::access(record_path().c_str(), F_OK) != 0) return false;
  init_.reset();
  open_up(dir_ + "/work");
  become(State::kPaused, std::nullopt);
  return true;
}

base::Result<void> Sandbox::set_timeout(std::chrono::seconds timeout, bool only_later) {
  base::MutexLock lock(mu_);
  if (state_.state != State::kRunning) return base::errno_error(ESRCH, "not running");
  const auto ends = std::min(WallClock::now() + timeout, state_.started + kMaxLifetime);
  if (!only_later || ends > state_.ends) state_.ends = ends;
  return {};
}

bool Sandbox::alive() {
  {
    base::MutexLock lock(mu_);
    if (changing_ || state_.state == State::kEnded || state_.stored) return true;
  }
  base::MutexLock op(op_mu_);
  if (!init_ || init_->running()) return true;
  if (snapshot().state != State::kPaused && !spec_.auto_pause) return false;
  init_.reset();
  become(State::kPaused, std::nullopt);
  return true;
}

pid_t Sandbox::init_pid() {
  base::MutexLock op(op_mu_);
  return init_ && init_->running() ? init_->pid() : -1;
}

std::vector<Usage> Sandbox::usage() {
  const auto init = snapshot().state == State::kRunning ? init_pid() : -1;
  std::optional<Usage> fresh;
  if (init > 0) fresh = usage_of(init, dir_);
  base::MutexLock lock(mu_);
  if (fresh) {
    // Since the sample before, or the beginning; a reboot begins anew.
    auto since = state_.started;
    std::chrono::nanoseconds used = fresh->cpu;
    if (!usage_.empty() && usage_.back().time > state_.started && usage_.back().cpu <= fresh->cpu) {
      since = usage_.back().time;
      used -= usage_.back().cpu;
    }
    const std::chrono::duration<double> wall = fresh->time - since;
    if (wall.count() > 0)
      fresh->cpu_used_pct = std::chrono::duration<double>(used).count() / wall.count() * 100.0;
    if (usage_.size() >= kMaxUsageSamples) usage_.pop_front();
    usage_.push_back(*fresh);
  }
  return {usage_.begin(), usage_.end()};
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
  const auto init = init_pid();
  return init > 0 && descendants_listen(init, port);
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
