// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/processes.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/sandbox_server/spawn.h"

namespace nearbox::sandbox_server {
namespace {

using Clock = std::chrono::steady_clock;

void set_nonblocking(int fd) { (void)::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK); }

}  // namespace

void Subscription::push(const ProcessEvent& event) {
  base::MutexLock lock(mu_);
  while (!closed_ && queue_.size() >= kMaxQueuedEvents) {
    changed_.wait_until(mu_, Clock::now() + std::chrono::seconds(1));
  }
  if (closed_) return;
  queue_.push_back(event);
  changed_.notify_all();
}

Subscription::Pop Subscription::pop(ProcessEvent& out, Clock::time_point deadline) {
  base::MutexLock lock(mu_);
  while (queue_.empty()) {
    if (!changed_.wait_until(mu_, deadline) && queue_.empty()) return Pop::kTimeout;
  }
  out = std::move(queue_.front());
  queue_.pop_front();
  changed_.notify_all();
  return Pop::kEvent;
}

void Subscription::close() {
  base::MutexLock lock(mu_);
  closed_ = true;
  queue_.clear();
  changed_.notify_all();
}

bool Subscription::closed() const {
  base::MutexLock lock(mu_);
  return closed_;
}

base::Result<std::shared_ptr<EnvdProcess>> EnvdProcess::start(ProcessSpec spec,
                                                              std::shared_ptr<Subscription> first) {
  std::shared_ptr<EnvdProcess> process(new EnvdProcess(std::move(spec)));
  if (auto spawned = process->spawn(); !spawned) return std::move(spawned).error();
  {
    base::MutexLock lock(process->mu_);
    process->subscribers_.push_back(std::move(first));
  }
  process->thread_ = std::jthread([self = process.get()]() noexcept { self->pump(); });
  return process;
}

EnvdProcess::~EnvdProcess() {
  if (thread_.joinable()) {
    base::MutexLock lock(mu_);
    for (const auto& subscriber : subscribers_) subscriber->close();
  }
}

base::Result<void> EnvdProcess::spawn() {
  auto child = spawn_child(spec_);
  if (!child) return std::move(child).error();
  pid_ = child->pid;
  pidfd_ = std::move(child->pidfd);
  out_ = std::move(child->out);
  err_ = std::move(child->err);
  terminal_ = std::move(child->terminal);
  base::MutexLock lock(input_mu_);
  stdin_ = std::move(child->in);
  for (const int fd : {out_.get(), err_.get(), terminal_.get(), stdin_.get()}) {
    if (fd >= 0) set_nonblocking(fd);
  }
  return {};
}

std::shared_ptr<Subscription> EnvdProcess::subscribe() {
  auto fresh = std::make_shared<Subscription>();
  base::MutexLock lock(mu_);
  if (ended_at_) {
    fresh->push(ProcessEvent{ProcessEvent::Kind::kEnd, {}, wait_status_.value_or(0)});
  } else {
    subscribers_.push_back(fresh);
  }
  return fresh;
}

bool EnvdProcess::ended() const {
  base::MutexLock lock(mu_);
  return ended_at_.has_value();
}

std::optional<Clock::time_point> EnvdProcess::settled_at() const {
  base::MutexLock lock(mu_);
  return settled_ ? ended_at_ : std::nullopt;
}

void EnvdProcess::publish(const ProcessEvent& event) {
  std::vector<std::shared_ptr<Subscription>> current;
  {
    base::MutexLock lock(mu_);
    subscribers_.erase(
        std::remove_if(subscribers_.begin(), subscribers_.end(), [](const auto& s) { return s->closed(); }),
        subscribers_.end());
    current = subscribers_;
  }
  for (const auto& subscriber : current) subscriber->push(event);
}

// Reads once. False: the descriptor is at its end and closed now.
bool EnvdProcess::read_output(base::UniqueFd& fd, ProcessEvent::Kind kind) {
  std::string data(kind == ProcessEvent::Kind::kPty ? kPtyChunk : kOutputChunk, '\0');
  const auto got = ::read(fd.get(), data.data(), data.size());
  if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (got <= 0) {
    if (kind != ProcessEvent::Kind::kPty) fd.reset();
    return false;
  }
  data.resize(static_cast<std::size_t>(got));
  publish(ProcessEvent{kind, std::move(data), 0});
  return true;
}

// What is in the pipes already, after the process itself has ended.
void EnvdProcess::drain() {
  const auto readable = [](const base::UniqueFd& fd) {
    pollfd p{fd.get(), POLLIN, 0};
    return fd && ::poll(&p, 1, 0) > 0 && (p.revents & POLLIN) != 0;
  };
  constexpr int kMaxRounds = 64;  // a descendant may go on writing for ever
  for (int i = 0; i < kMaxRounds && readable(out_); ++i) (void)read_output(out_, ProcessEvent::Kind::kStdout);
  for (int i = 0; i < kMaxRounds && readable(err_); ++i) (void)read_output(err_, ProcessEvent::Kind::kStderr);
  for (int i = 0; i < kMaxRounds && readable(terminal_); ++i)
    (void)read_output(terminal_, ProcessEvent::Kind::kPty);
}

void EnvdProcess::finish() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  // A writer that waits for room in the pipe must not keep the end from being told.
  exiting_.store(true);
  {
    base::MutexLock lock(input_mu_);
    stdin_.reset();
  }
  std::vector<std::shared_ptr<Subscription>> last;
  {
    base::MutexLock lock(mu_);
    wait_status_ = status;
    ended_at_ = Clock::now();
    last = subscribers_;  // they stay, so that the destructor can close them
  }
  for (const auto& subscriber : last) subscriber->push(ProcessEvent{ProcessEvent::Kind::kEnd, {}, status});
  base::MutexLock lock(mu_);
  subscribers_.clear();
  settled_ = true;
}

void EnvdProcess::pump() noexcept {
  pthread_setname_np(pthread_self(), "envd-pump");
  const bool pty = spec_.pty.has_value();
  bool terminal_open = pty;
  bool exited = false;
  bool deadline_passed = false;
  while (true) {
    std::array<pollfd, 4> fds{pollfd{out_.get(), POLLIN, 0}, pollfd{err_.get(), POLLIN, 0},
                              pollfd{terminal_open ? terminal_.get() : -1, POLLIN, 0},
                              pollfd{exited ? -1 : pidfd_.get(), POLLIN, 0}};
    (void)::poll(fds.data(), fds.size(), exited ? 100 : 250);
    if (fds[0].revents != 0) (void)read_output(out_, ProcessEvent::Kind::kStdout);
    if (fds[1].revents != 0) (void)read_output(err_, ProcessEvent::Kind::kStderr);
    if (fds[2].revents != 0) terminal_open = read_output(terminal_, ProcessEvent::Kind::kPty);
    if (fds[3].revents != 0) exited = true;
    if (!deadline_passed && !exited && spec_.deadline && Clock::now() >= *spec_.deadline) {
      deadline_passed = true;
      (void)signal(SIGKILL).ok();
    }
    bool killed = false;
    {
      base::MutexLock lock(mu_);
      killed = killed_;
    }
    const bool silent = !out_ && !err_;
    // A terminal has no end of its own while descendants hold it; its leader's end is enough.
    if (exited && (pty || killed || silent)) break;
  }
  drain();
  finish();
}

base::Result<void> EnvdProcess::write_input(std::string_view data, bool pty,
                                            const std::function<bool()>& going) {
  base::MutexLock lock(input_mu_);
  if (pty != spec_.pty.has_value())
    return base::errno_error(EPIPE, pty ? "process has no pty" : "process has a pty");
  const int fd = pty ? terminal_.get() : stdin_.get();
  if (fd < 0) return base::errno_error(EPIPE, "stdin is closed or was not enabled");
  while (!data.empty()) {
    if (exiting_.load()) return base::errno_error(EPIPE, "process has ended");
    const auto written = ::write(fd, data.data(), data.size());
    if (written > 0) {
      data.remove_prefix(static_cast<std::size_t>(written));
      continue;
    }
    if (written < 0 && errno != EAGAIN && errno != EINTR) return base::last_errno("write to stdin");
    pollfd ready{fd, POLLOUT, 0};
    (void)::poll(&ready, 1, 250);
    if (!going()) return base::errno_error(ECANCELED, "write to stdin");
  }
  return {};
}

base::Result<void> EnvdProcess::close_stdin() {
  if (spec_.pty) return base::errno_error(EINVAL, "a pty's stdin cannot be closed");
  base::MutexLock lock(input_mu_);
  stdin_.reset();
  return {};
}

base::Result<void> EnvdProcess::resize(PtySize size) {
  if (!terminal_) return base::errno_error(EINVAL, "process has no pty");
  winsize ws{size.rows, size.columns, 0, 0};
  if (::ioctl(terminal_.get(), TIOCSWINSZ, &ws) != 0) return base::last_errno("resize");
  return {};
}

base::Result<void> EnvdProcess::signal(int number) {
  {
    base::MutexLock lock(mu_);
    if (ended_at_) return base::errno_error(ESRCH, "process has ended");
    killed_ = true;
  }
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0) != 0)
    return base::last_errno("signal");
  return {};
}

base::Result<std::shared_ptr<EnvdProcess>> ProcessTable::start(ProcessSpec spec,
                                                               std::shared_ptr<Subscription> first) {
  std::vector<std::shared_ptr<EnvdProcess>> old;
  {
    base::MutexLock lock(mu_);
    forget_old(old);
    if (!make_room(old)) return base::errno_error(EAGAIN, "too many processes");
  }
  auto process = EnvdProcess::start(std::move(spec), std::move(first));
  if (!process) return process;
  base::MutexLock lock(mu_);
  auto& slot = table_[(*process)->pid()];
  old.push_back(std::move(slot));  // an ended one whose number was used again
  slot = *process;
  return process;
}

std::shared_ptr<EnvdProcess> ProcessTable::find(std::optional<pid_t> pid,
                                                const std::optional<std::string>& tag) {
  std::vector<std::shared_ptr<EnvdProcess>> old;
  base::MutexLock lock(mu_);
  forget_old(old);
  for (const auto& [number, process] : table_) {
    if (pid ? number == *pid : tag && process->spec().tag == tag) return process;
  }
  return nullptr;
}

std::vector<std::shared_ptr<EnvdProcess>> ProcessTable::living() {
  std::vector<std::shared_ptr<EnvdProcess>> out;
  base::MutexLock lock(mu_);
  for (const auto& [number, process] : table_) {
    (void)number;
    if (!process->ended()) out.push_back(process);
  }
  return out;
}

// Their threads have ended or are about to; they are joined when `out` goes.
void ProcessTable::forget_old(std::vector<std::shared_ptr<EnvdProcess>>& out) {
  const auto now = Clock::now();
  for (auto it = table_.begin(); it != table_.end();) {
    const auto ended = it->second->settled_at();
    if (ended && now - *ended > kExitRetention) {
      out.push_back(std::move(it->second));
      it = table_.erase(it);
    } else {
      ++it;
    }
  }
}

// False: every place is taken by a living process.
bool ProcessTable::make_room(std::vector<std::shared_ptr<EnvdProcess>>& out) {
  if (table_.size() < kMaxProcesses) return true;
  auto oldest = table_.end();
  std::optional<Clock::time_point> oldest_end;
  for (auto it = table_.begin(); it != table_.end(); ++it) {
    const auto ended = it->second->settled_at();
    if (!ended || (oldest_end && *oldest_end <= *ended)) continue;
    oldest = it;
    oldest_end = ended;
  }
  if (oldest == table_.end()) return false;
  out.push_back(std::move(oldest->second));
  table_.erase(oldest);
  return true;
}

}  // namespace nearbox::sandbox_server
