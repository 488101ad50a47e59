// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_table.h"

#include <algorithm>
#include <csignal>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "tools/agent/proc_groups.h"
#include "tools/agent/proc_orphans.h"
#include "tools/agent/proc_pty.h"
#include "tools/agent/proc_table_impl.h"

namespace nearbox::agent {
namespace {

std::uint32_t ring_size(std::uint32_t asked, std::uint32_t usual) {
  return std::clamp(asked == 0 ? usual : asked, kMinRingBytes, kMaxRingBytes);
}

std::string command_text(const std::vector<std::string>& argv) {
  std::string text;
  for (const auto& arg : argv) {
    if (!text.empty()) text += ' ';
    text += arg.substr(0, wire::kMaxText);
    if (text.size() >= wire::kMaxText) break;
  }
  text.resize(std::min(text.size(), wire::kMaxText));
  return text;
}

}  // namespace

void give(StdinQueue::Answers& answers) {
  for (auto& answer : answers) {
    if (answer.error != 0) {
      answer.responder->end(answer.error);
    } else {
      answer.responder->end(0, wire::encode(wire::ProcInputReply{answer.accepted}));
    }
  }
  answers.clear();
}

ProcTable::Impl::Impl(const Options& options, ExitFn on_exit, base::Logger& log)
    : options_(options),
      on_exit_(std::move(on_exit)),
      log_(log),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  reap_orphans();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  if (!epoll_ || !wake_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    log_.error("proc table without epoll errno=" + std::to_string(errno));
    broken_ = true;  // start() answers EAGAIN
    return;
  }
  poll_thread_ = std::jthread([this](const std::stop_token& stop) noexcept { loop(stop); });
}

ProcTable::Impl::~Impl() {
  end_feeders();
  StdinQueue::Answers answers;
  {
    base::MutexLock lock(mu_);
    for (const auto& [number, proc] : procs_) proc->input.fail(ECANCELED, answers);
  }
  give(answers);
  hang_up();
  poll_thread_.request_stop();
  wake();
  if (poll_thread_.joinable()) poll_thread_.join();
  leave_rest();
}

// ---- starting -----------------------------------------------------------------------------------

base::Result<wire::ProcReply> ProcTable::Impl::start(const wire::ProcStart& request) {
  reap_orphans();
  bool fresh = false;
  auto reserved = reserve(request, fresh);
  if (!reserved) return std::move(reserved).error();
  Proc& proc = **reserved;
  if (!fresh) {
    base::MutexLock lock(mu_);
    const auto deadline = Clock::now() + kStartWait;
    while (proc.starting) {
      if (!proc.changed.wait_until(mu_, deadline) && proc.starting)
        return base::errno_error(ETIMEDOUT, "start");
    }
    if (proc.failed) return proc.why_failed;
    return reply_of(proc);
  }
  auto spec = make_spec(request, options_.sandbox_user);
  if (!spec) return fail_start(*reserved, std::move(spec).error());
  StartMarkers* const marks = options_.start_marks.get();
  if (auto marked = marks != nullptr ? marks->claim(request.proc) : base::Result<void>{}; !marked)
    return fail_start(*reserved, std::move(marked).error());
  spec->nofile_soft = options_.child_nofile_soft;
  spec->cgroup_procs = options_.child_cgroup_procs;
  auto spawned = spawn(*spec);
  if (!spawned) {
    if (marks != nullptr) marks->drop(request.proc);
    return fail_start(*reserved, std::move(spawned).error());
  }
  return finish_start(*reserved, std::move(*spawned));
}

base::Result<ProcPtr> ProcTable::Impl::reserve(const wire::ProcStart& request, bool& fresh) {
  base::MutexLock lock(mu_);
  if (auto known = find(request.proc)) return known;
  if (closing_) return base::errno_error(ECANCELED, "the session ends");
  if (broken_) return base::errno_error(EAGAIN, "no descriptors for processes");
  const std::uint32_t ring_bytes = ring_size(request.ring_bytes, options_.default_ring_bytes);
  if (!make_room(ring_bytes)) return base::errno_error(EAGAIN, "too many processes or too much output kept");
  auto proc = std::make_shared<Proc>(ring_bytes);
  proc->proc = request.proc;
  proc->serial = next_serial_++;
  proc->flags = request.flags;
  proc->command = command_text(request.argv);
  procs_.emplace(request.proc, proc);
  arrived_.notify_all();
  fresh = true;
  return proc;
}

// Within the limits, when need be after dropping ended processes whose output was all delivered.
bool ProcTable::Impl::make_room(std::uint64_t ring_bytes) {
  std::uint64_t total = ring_bytes;
  for (const auto& [number, proc] : procs_) total += proc->ring.capacity();
  while (procs_.size() >= wire::kMaxProcs || total > kMaxRingTotal) {
    auto oldest = procs_.end();
    for (auto it = procs_.begin(); it != procs_.end(); ++it) {
      const Proc& proc = *it->second;
      if (!proc.final || !proc.exit_sent || !proc.attaches.empty()) continue;
      if (oldest == procs_.end() || proc.serial < oldest->second->serial) oldest = it;
    }
    if (oldest == procs_.end()) return false;
    total -= oldest->second->ring.capacity();
    procs_.erase(oldest);
  }
  return true;
}

base::Error ProcTable::Impl::fail_start(const ProcPtr& proc, base::Error why) {
  StdinQueue::Answers answers;
  {
    base::MutexLock lock(mu_);
    proc->starting = false;
    proc->failed = true;
    proc->why_failed = why;
    proc->input.fail(ENOENT, answers);
    proc->changed.notify_all();
    procs_.erase(proc->proc);
  }
  give(answers);
  return why;
}

wire::ProcReply ProcTable::Impl::finish_start(const ProcPtr& proc, Spawned spawned) {
  base::MutexLock lock(mu_);
  proc->pid = spawned.pid;
  proc->pidfd.fd = std::move(spawned.pidfd);
  proc->in.fd = std::move(spawned.in);
  proc->out.fd = std::move(spawned.out);
  proc->err.fd = std::move(spawned.err);
  proc->hold_until = Clock::now() + std::chrono::milliseconds(options_.attach_grace_ms);
  proc->starting = false;
  proc->changed.notify_all();
  by_serial_.emplace(proc->serial, proc);
  wake();
  return reply_of(*proc);
}

wire::ProcReply ProcTable::Impl::reply_of(const Proc& proc) const {
  return {proc.proc, proc.pid, static_cast<std::uint32_t>(proc.ring.capacity())};
}

ProcPtr ProcTable::Impl::find(std::uint64_t number) const {
  const auto found = procs_.find(number);
  return found == procs_.end() ? nullptr : found->second;
}

void ProcTable::Impl::wake() const {
  const std::uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
}

// ---- ending -------------------------------------------------------------------------------------

std::set<pid_t> ProcTable::Impl::foreground_groups(bool leader_alive) {
  base::MutexLock lock(mu_);
  std::set<pid_t> groups;
  for (const auto& [serial, proc] : by_serial_) {
    if (!proc->background() && !(leader_alive && proc->exited)) groups.insert(proc->pid);
  }
  return groups;
}

// The leaders are not reaped meanwhile (pass_time), so the group numbers stay theirs.
void ProcTable::Impl::hang_up() {
  const auto groups = foreground_groups(false);
  for (const pid_t group : groups) {
    (void)::kill(-group, SIGHUP);
    (void)::kill(-group, SIGCONT);  // a stopped one hears it only then
  }
  wake();
  const auto wait_while = [this](Clock::time_point deadline, const auto& condition) {
    while (condition() && Clock::now() < deadline) {
      base::MutexLock lock(mu_);
      (void)some_exit_.wait_until(mu_, std::min(deadline, Clock::now() + kNoPidfdTick));
    }
  };
  wait_while(Clock::now() + kHangupTime, [&groups] { return any_group_alive(groups); });
  for (const pid_t group : groups) (void)::kill(-group, SIGKILL);
  wait_while(Clock::now() + kKillTime, [this] { return !foreground_groups(true).empty(); });
}

// What runs on, or would not die, after the poll thread has ended.
void ProcTable::Impl::leave_rest() {
  base::MutexLock lock(mu_);
  std::vector<base::UniqueFd> fds;
  for (auto& [serial, fd] : leftovers_) fds.push_back(std::move(fd));
  for (const auto& [serial, proc] : by_serial_) {
    if (proc->background()) {
      if (proc->out.fd) fds.push_back(std::move(proc->out.fd));
      if (proc->err.fd) fds.push_back(std::move(proc->err.fd));
    }
    adopt_orphan(proc->pid);
  }
  drain_elsewhere(std::move(fds));
  reap_orphans();
}

// ---- the public face ----------------------------------------------------------------------------

ProcTable::ProcTable(const Options& options, ExitFn on_exit, base::Logger& log)
    : impl_(std::make_unique<Impl>(options, std::move(on_exit), log)) {}

ProcTable::~ProcTable() = default;

base::Result<wire::ProcReply> ProcTable::start(const wire::ProcStart& request) {
  return impl_->start(request);
}

void ProcTable::attach(const wire::ProcAttach& request, channel::ResponderPtr responder) {
  impl_->attach(request, std::move(responder));
}

void ProcTable::input(const wire::ProcInput& request, channel::ResponderPtr responder) {
  StdinQueue::Answers answers;
  {
    base::MutexLock lock(impl_->mu_);
    const ProcPtr proc = impl_->find(request.proc);
    if (!proc || impl_->closing_) {
      answers.push_back({std::move(responder), proc ? ECANCELED : ENOENT, 0});
    } else if ((proc->flags & (wire::kProcStdin | wire::kProcPty)) == 0) {
      answers.push_back({std::move(responder), EPIPE, 0});
    } else {
      proc->input.push(request, std::move(responder), answers);
    }
  }
  give(answers);
  impl_->wake();
}

base::Result<void> ProcTable::signal(const wire::ProcSignal& request) {
  if (request.signal < 0 || request.signal >= NSIG) return base::errno_error(EINVAL, "no such signal");
  base::MutexLock lock(impl_->mu_);
  const ProcPtr proc = impl_->find(request.proc);
  if (!proc) return base::errno_error(ENOENT, "no such process");
  if (proc->starting) return base::errno_error(EAGAIN, "the process is being started");
  if (proc->final || (proc->exited && !request.group))
    return base::errno_error(ESRCH, "the process has ended");
  if (::kill(request.group ? -proc->pid : proc->pid, request.signal) != 0) return base::last_errno("kill");
  return {};
}

base::Result<void> ProcTable::resize(const wire::ProcResize& request) {
  base::MutexLock lock(impl_->mu_);
  const ProcPtr proc = impl_->find(request.proc);
  if (!proc) return base::errno_error(ENOENT, "no such process");
  if (proc->starting) return base::errno_error(EAGAIN, "the process is being started");
  if (!proc->pty()) return base::errno_error(ENOTTY, "the process has no terminal");
  if (!proc->out.fd) return base::errno_error(ESRCH, "the process has ended");
  return resize_pty(proc->out.fd.get(), request.rows, request.cols);
}

wire::ProcListReply ProcTable::list() const {
  base::MutexLock lock(impl_->mu_);
  wire::ProcListReply reply;
  for (const auto& [number, proc] : impl_->procs_) {
    if (proc->starting) continue;
    reply.procs.push_back({number, proc->pid, proc->flags, proc->exited, proc->code, proc->signal,
                           proc->ring.end(), proc->command});
  }
  return reply;
}

void ProcTable::consumed(const wire::ProcConsumed& note) {
  base::MutexLock lock(impl_->mu_);
  const ProcPtr proc = impl_->find(note.proc);
  if (!proc) return;
  const bool was_full = proc->ring.room() == 0;
  proc->ring.trim(note.offset);
  if (was_full) impl_->wake();
}

void ProcTable::forget(const wire::ProcForget& note) {
  base::MutexLock lock(impl_->mu_);
  const ProcPtr proc = impl_->find(note.proc);
  if (!proc) return;
  proc->forgotten = true;  // one that runs goes when it has ended
  if (impl_->options_.start_marks) impl_->options_.start_marks->drop(note.proc);
  if (proc->final) impl_->procs_.erase(note.proc);
  impl_->wake();
}

void ProcTable::set_connected(bool connected) {
  base::MutexLock lock(impl_->mu_);
  const auto now = Clock::now();
  const auto grace = now + std::chrono::milliseconds(impl_->options_.attach_grace_ms);
  for (const auto& [number, proc] : impl_->procs_) {
    const bool held = now < proc->hold_until || (impl_->connected_ && !proc->attaches.empty());
    if (held) proc->hold_until = grace;
  }
  impl_->connected_ = connected;
  impl_->wake();
}

std::size_t ProcTable::running() const {
  base::MutexLock lock(impl_->mu_);
  return static_cast<std::size_t>(
      std::count_if(impl_->procs_.begin(), impl_->procs_.end(),
                    [](const auto& entry) { return entry.second->starting || entry.second->running(); }));
}

}  // namespace nearbox::agent
