// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <csignal>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "tools/agent/proc_pty.h"
#include "tools/agent/proc_table_impl.h"

namespace nearbox::agent {
namespace {

// What an epoll event is about: serial * 4 + kind. Serial 0 is the wake-up descriptor.
enum Kind : std::uint32_t { kOut = 0, kErr = 1, kIn = 2, kPid = 3 };
constexpr int kMaxEvents = 64;  // of one round

// SIGPIPE of a write to a process that is gone stays pending here; the process' signals belong to
// other threads.
void block_signals() {
  sigset_t all;
  sigfillset(&all);
  (void)::pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

std::size_t unread(const Watched& pipe) {
  int bytes = 0;
  if (!pipe.fd || ::ioctl(pipe.fd.get(), FIONREAD, &bytes) != 0 || bytes < 0) return 0;
  return static_cast<std::size_t>(bytes);
}

}  // namespace

void ProcTable::Impl::loop(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "procs");
  block_signals();
  std::array<epoll_event, kMaxEvents> events;
  while (!stop.stop_requested()) {
    const int n = ::epoll_wait(epoll_.get(), events.data(), kMaxEvents, prepare());
    for (int i = 0; i < n; ++i) {
      const auto& event = events[static_cast<std::size_t>(i)];
      on_event(event.data.u64, event.events);
    }
    pass_time();
    join_finished_feeders();
  }
}

int ProcTable::Impl::prepare() {
  base::MutexLock lock(mu_);
  const auto now = Clock::now();
  auto next = now + kIdleTick;
  for (const auto& [serial, proc] : by_serial_) arm(*proc, now, next);
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(next - now);
  return static_cast<int>(std::max<std::chrono::milliseconds::rep>(wait.count(), 0));
}

bool ProcTable::Impl::holds(const Proc& proc, Clock::time_point now) const {
  if (proc.background() || proc.forgotten || closing_) return false;
  return (connected_ && !proc.attaches.empty()) || now < proc.hold_until;
}

bool ProcTable::Impl::paused(const Proc& proc, Clock::time_point now) const {
  return proc.ring.room() == 0 && holds(proc, now);
}

void ProcTable::Impl::arm(Proc& proc, Clock::time_point now, Clock::time_point& next) {
  const bool full = paused(proc, now);
  std::uint32_t reading = full ? 0U : EPOLLIN;
  const std::uint32_t writing = proc.input.pending() ? EPOLLOUT : 0U;
  if (now < proc.pty_retry) {
    reading = 0;
    next = std::min(next, proc.pty_retry);
  }
  set_events(proc, proc.out, kOut, proc.pty() ? reading | writing : reading);
  set_events(proc, proc.err, kErr, reading);
  set_events(proc, proc.in, kIn, writing);
  set_events(proc, proc.pidfd, kPid, proc.exited ? 0U : EPOLLIN);
  if (full && now < proc.hold_until) next = std::min(next, proc.hold_until);
  const bool kept = closing_ && !proc.background();  // as in pass_time()
  if (proc.exited && !kept && !full && proc.owed_bytes == 0) next = std::min(next, proc.drain_deadline);
  if (!proc.exited && !proc.pidfd.fd) next = std::min(next, now + kNoPidfdTick);
}

void ProcTable::Impl::set_events(const Proc& proc, Watched& watched, std::uint32_t kind,
                                 std::uint32_t events) {
  if (!watched.fd || watched.armed == events) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = proc.serial * 4 + kind;
  // Without events it leaves the set: a hang-up is reported whether asked for or not.
  const int how = events == 0 ? EPOLL_CTL_DEL : watched.armed == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  if (::epoll_ctl(epoll_.get(), how, watched.fd.get(), &event) != 0) {
    log_.warn("proc epoll_ctl failed errno=" + std::to_string(errno));
    return;
  }
  watched.armed = events;
}

void ProcTable::Impl::close_watched(const Proc& proc, Watched& watched) {
  set_events(proc, watched, 0, 0);
  watched.fd.reset();
}

void ProcTable::Impl::on_event(std::uint64_t token, std::uint32_t events) {
  const std::uint64_t serial = token / 4;
  if (serial == 0) {
    std::uint64_t count = 0;
    (void)!::read(wake_.get(), &count, sizeof count);
    return;
  }
  ProcPtr proc;
  {
    base::MutexLock lock(mu_);
    const auto found = by_serial_.find(serial);
    if (found != by_serial_.end()) proc = found->second;
    if (proc && token % 4 == kPid) look_for_exit(*proc);
  }
  if (!proc) return read_leftover(serial);
  const bool hung_up = (events & (EPOLLHUP | EPOLLERR)) != 0;
  switch (token % 4) {
    case kOut:
      if (hung_up || (events & EPOLLIN) != 0) read_output(*proc, proc->out, wire::ProcStream::kStdout);
      if (proc->pty() && (hung_up || (events & EPOLLOUT) != 0)) write_input(*proc);
      break;
    case kErr:
      read_output(*proc, proc->err, wire::ProcStream::kStderr);
      break;
    case kIn:
      write_input(*proc);
      break;
    default:
      break;
  }
}

// Reads without the lock: this thread alone adds to the ring and closes descriptors, so the room it
// saw can only have grown.
void ProcTable::Impl::read_output(Proc& proc, Watched& from, wire::ProcStream stream) {
  std::size_t want = kReadBytes;
  {
    base::MutexLock lock(mu_);
    if (!from.fd) return;
    if (holds(proc, Clock::now())) want = std::min(want, proc.ring.room());
    if (want == 0) return;
  }
  const ssize_t n = ::read(from.fd.get(), scratch_.data(), want);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  base::MutexLock lock(mu_);
  if (n > 0) {
    const auto bytes = static_cast<std::size_t>(n);
    proc.owed_bytes -= std::min(proc.owed_bytes, bytes);
    if (closing_ || proc.forgotten) return;
    proc.ring.append(proc.pty() ? wire::ProcStream::kPty : stream, wire::ByteView(scratch_).first(bytes));
    proc.changed.notify_all();
  } else if (proc.pty() && !proc.exited) {
    proc.pty_retry = Clock::now() + kPtyRetry;  // it may open /dev/tty again; closing would hang it up
  } else {
    close_watched(proc, from);
  }
}

void ProcTable::Impl::write_input(Proc& proc) {
  StdinQueue::Answers answers;
  {
    base::MutexLock lock(mu_);
    if (!proc.input.front().empty()) write_some(proc, answers);
    if (proc.input.wants_end()) write_end(proc, answers);
  }
  give(answers);
}

void ProcTable::Impl::write_some(Proc& proc, StdinQueue::Answers& answers) {
  Watched& to = proc.pty() ? proc.out : proc.in;
  const auto bytes = proc.input.front();
  const ssize_t n = to.fd ? ::write(to.fd.get(), bytes.data(), bytes.size()) : (errno = EPIPE, -1);
  if (n >= 0) return proc.input.wrote(static_cast<std::size_t>(n), answers);
  if (errno == EAGAIN || errno == EINTR) return;
  proc.input.fail(EPIPE, answers);
  if (!proc.pty()) close_watched(proc, proc.in);
}

void ProcTable::Impl::write_end(Proc& proc, StdinQueue::Answers& answers) {
  if (!proc.pty()) {
    close_watched(proc, proc.in);
    return proc.input.ended(answers);
  }
  // In the middle of a line the first one ends the line only.
  const char eof = eof_byte(proc.out.fd.get());
  const char twice[2] = {eof, eof};
  const std::size_t count = proc.input.last_byte() == '\n' || proc.input.last_byte() == '\r' ? 1 : 2;
  const ssize_t n = ::write(proc.out.fd.get(), twice, count);
  if (n > 0) return proc.input.ended(answers);
  if (errno != EAGAIN && errno != EINTR) proc.input.fail(EPIPE, answers);
}

void ProcTable::Impl::look_for_exit(Proc& proc) {
  if (proc.exited) return;
  siginfo_t info{};
  const int rc = ::waitid(P_PID, static_cast<id_t>(proc.pid), &info, WEXITED | WNOHANG | WNOWAIT);
  if (rc == 0 && info.si_pid == 0) return;
  if (rc != 0 && errno == EINTR) return;
  if (rc != 0) log_.warn("proc exit status lost pid=" + std::to_string(proc.pid));
  proc.exited = true;
  proc.code = rc == 0 && info.si_code == CLD_EXITED ? info.si_status : -1;
  proc.signal = rc == 0 && info.si_code != CLD_EXITED ? info.si_status : 0;
  proc.drain_deadline = Clock::now() + kDrainTime;
  proc.pty_retry = {};
  if (!proc.pty()) proc.owed_bytes = unread(proc.out) + unread(proc.err);
  close_watched(proc, proc.pidfd);
  some_exit_.notify_all();
}

void ProcTable::Impl::pass_time() {
  StdinQueue::Answers answers;
  std::vector<wire::ProcExit> exits;
  {
    base::MutexLock lock(mu_);
    const auto now = Clock::now();
    std::vector<ProcPtr> final;
    for (const auto& [serial, proc] : by_serial_) {
      if (!proc->exited && !proc->pidfd.fd) look_for_exit(*proc);
      if (!proc->exited || (closing_ && !proc->background())) continue;  // the zombie keeps its group
      const bool full = paused(*proc, now);
      if (full) proc->drain_deadline += now - last_pass_;
      const bool open = proc->out.fd || proc->err.fd;
      const bool waited = !full && proc->owed_bytes == 0 && now >= proc->drain_deadline;
      if (!open || waited) final.push_back(proc);
    }
    last_pass_ = now;
    for (const auto& proc : final) {
      finalize(*proc, answers);
      if (!closing_) exits.push_back({proc->proc, proc->code, proc->signal});
    }
  }
  give(answers);
  for (const auto& exit : exits) on_exit_(exit);
}

void ProcTable::Impl::finalize(Proc& proc, StdinQueue::Answers& answers) {
  (void)::waitpid(proc.pid, nullptr, WNOHANG);  // known to have ended
  proc.final = true;
  proc.input.fail(EPIPE, answers);
  close_watched(proc, proc.in);
  keep_leftover(proc, proc.out);
  keep_leftover(proc, proc.err);
  proc.changed.notify_all();
  by_serial_.erase(proc.serial);
  if (proc.forgotten) procs_.erase(proc.proc);
}

// A grandchild still writes there. It goes on, unread by the client: closing would kill it.
void ProcTable::Impl::keep_leftover(const Proc& proc, Watched& watched) {
  if (!watched.fd) return;
  set_events(proc, watched, 0, 0);
  if (leftovers_.size() >= kMaxLeftovers) leftovers_.erase(leftovers_.begin());
  const std::uint64_t serial = next_serial_++;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = serial * 4 + kOut;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, watched.fd.get(), &event) != 0) watched.fd.reset();
  if (watched.fd) leftovers_.emplace(serial, std::move(watched.fd));
}

void ProcTable::Impl::read_leftover(std::uint64_t serial) {
  const auto found = leftovers_.find(serial);
  if (found == leftovers_.end()) return;
  const ssize_t n = ::read(found->second.get(), scratch_.data(), scratch_.size());
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) leftovers_.erase(found);
}

}  // namespace nearbox::agent
