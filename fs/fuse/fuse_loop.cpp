// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/fuse_loop.h"

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/base/fault.h"
#include "fs/fuse/mount_point.h"
#include "fs/fuse/session.h"
#include "fs/fuse/watchdog.h"

namespace nearbox::fs {
namespace {

using base::MutexLock;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kRequestBytes = 1024 * 1024 + 64 * 1024;  // the largest WRITE and its headers
constexpr int kBurst = 64;                          // requests of one session before another gets its turn
constexpr int kEpollMs = 60'000;                    // how long a worker sleeps at most
constexpr std::uint64_t kStopId = 0;                // of the eventfd in epoll
constexpr std::chrono::seconds kLeaveDeadline{10};  // for workers to leave a session

}  // namespace

// The workers and the sessions they serve.
class FuseLoop::Core {
 public:
  struct Entry {
    explicit Entry(std::shared_ptr<Session> s) : session(std::move(s)) {}
    std::shared_ptr<Session> session;
    std::uint64_t id = 0;
    base::Mutex mu;  // leaf
    base::CondVar changed;
    int users GUARDED_BY(mu) = 0;
    bool closed GUARDED_BY(mu) = false;
    bool gone GUARDED_BY(mu) = false;
    std::function<void()> on_gone GUARDED_BY(mu);
  };
  using EntryPtr = std::shared_ptr<Entry>;

  Core(const FuseLoopOptions& options, base::Logger& log)
      : options_(options),
        log_(log),
        epoll_(::epoll_create1(EPOLL_CLOEXEC)),
        stop_(::eventfd(0, EFD_CLOEXEC)) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = kStopId;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stop_.get(), &event);
    for (int i = 0; i < std::max(options_.workers, 1); ++i) {
      threads_.emplace_back([this](const std::stop_token& stop) { work(stop); });
    }
  }
  ~Core() {
    for (auto& thread : threads_) thread.request_stop();
    const std::uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof(one));  // stays readable: wakes all
    threads_.clear();
  }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  EntryPtr add(std::shared_ptr<Session> session) {
    auto entry = std::make_shared<Entry>(std::move(session));
    {
      MutexLock lock(mu_);
      entry->id = next_++;
      entries_[entry->id] = entry;
    }
    control(EPOLL_CTL_ADD, *entry);
    return entry;
  }
  // No worker is in the session when it returns true.
  bool remove(const EntryPtr& entry) {
    {
      MutexLock lock(mu_);
      if (entries_.erase(entry->id) != 0) control(EPOLL_CTL_DEL, *entry);
    }
    MutexLock lock(entry->mu);
    entry->closed = true;
    const auto deadline = Clock::now() + kLeaveDeadline;
    while (entry->users != 0) {
      if (!entry->changed.wait_until(entry->mu, deadline)) return entry->users == 0;
    }
    return true;
  }
  base::Logger& log() { return log_; }

 private:
  void control(int op, const Entry& entry) const {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLONESHOT;
    event.data.u64 = entry.id;
    ::epoll_ctl(epoll_.get(), op, entry.session->fd(), &event);
  }
  EntryPtr enter(std::uint64_t id) {
    EntryPtr entry;
    {
      MutexLock lock(mu_);
      const auto it = entries_.find(id);
      if (it == entries_.end()) return nullptr;
      entry = it->second;
    }
    MutexLock lock(entry->mu);
    if (entry->closed || entry->gone) return nullptr;
    ++entry->users;
    return entry;
  }
  static void leave(Entry& entry) {
    MutexLock lock(entry.mu);
    --entry.users;
    entry.changed.notify_all();
  }
  void work(const std::stop_token& stop) noexcept;
  void serve(const EntryPtr& entry, std::vector<char>& buffer, const std::stop_token& stop);
  static void mark_gone(Entry& entry);

  const FuseLoopOptions options_;
  base::Logger& log_;
  const base::UniqueFd epoll_, stop_;
  base::Mutex mu_;
  std::unordered_map<std::uint64_t, EntryPtr> entries_ GUARDED_BY(mu_);
  std::uint64_t next_ GUARDED_BY(mu_) = kStopId + 1;
  std::atomic<int> spinning_{0};
  std::vector<std::jthread> threads_;  // last: they use the others
};

void FuseLoop::Core::work(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "fuse-worker");
  std::vector<char> buffer(kRequestBytes);
  while (!stop.stop_requested()) {
    epoll_event event{};
    if (::epoll_wait(epoll_.get(), &event, 1, kEpollMs) != 1 || event.data.u64 == kStopId) continue;
    const auto entry = enter(event.data.u64);
    if (!entry) continue;
    serve(entry, buffer, stop);
    leave(*entry);
  }
}

// Reads requests until none comes for busy_poll. The descriptor is armed once (EPOLLONESHOT): short
// requests stay with this worker; before one with much data it is armed again, so that others go on.
void FuseLoop::Core::serve(const EntryPtr& entry, std::vector<char>& buffer, const std::stop_token& stop) {
  bool armed = false;
  const auto arm = [&] {
    if (!std::exchange(armed, true)) control(EPOLL_CTL_MOD, *entry);
  };
  bool spins = false;
  Clock::time_point until{};
  for (int handled = 0; handled < kBurst && !stop.stop_requested();) {
    const auto step = entry->session->receive(buffer, arm);
    if (step == Session::Step::kGone) {
      mark_gone(*entry);
      break;
    }
    if (step != Session::Step::kNothing) {
      ++handled;
      until = {};
      continue;
    }
    const auto now = Clock::now();
    if (until == Clock::time_point{}) until = now + options_.busy_poll;
    if (!spins) spins = spinning_.fetch_add(1) == 0;
    if (!spins) {
      spinning_.fetch_sub(1);
      break;
    }
    if (now >= until) break;
    __builtin_ia32_pause();
  }
  if (spins) spinning_.fetch_sub(1);
  arm();
}

void FuseLoop::Core::mark_gone(Entry& entry) {
  std::function<void()> fn;
  {
    MutexLock lock(entry.mu);
    if (std::exchange(entry.gone, true)) return;
    fn = std::move(entry.on_gone);
    entry.changed.notify_all();
  }
  entry.session->refuse_parked(ENOTCONN);
  if (fn) fn();
}

// ---- one mount

class MountSession::Impl {
 public:
  std::shared_ptr<FuseLoop::Core> core;
  FuseLoop::Core::EntryPtr entry;
  std::shared_ptr<Session> session;
  std::unique_ptr<MountPoint> point;
  Watchdog watchdog;
  std::string mountpoint;

  base::Result<void> unmount(Clock::time_point deadline);

 private:
  bool wait_gone(Clock::time_point deadline) const {
    MutexLock lock(entry->mu);
    while (!entry->gone) {
      if (!entry->changed.wait_until(entry->mu, deadline)) return entry->gone;
    }
    return true;
  }
  void detach(bool lazy, Clock::time_point deadline, base::Result<void>& result);
};

// umount(2) may wait for write-out that waits for the agent: it runs beside, and the connection is cut
// when it takes too long, which frees it.
void MountSession::Impl::detach(bool lazy, Clock::time_point deadline, base::Result<void>& result) {
  base::Mutex mu;
  base::CondVar ready;
  bool done = false;
  std::jthread runner([&]() noexcept {
    pthread_setname_np(pthread_self(), "fuse-umount");
    auto outcome = point->unmount(lazy, deadline);
    MutexLock lock(mu);
    result = std::move(outcome);
    done = true;
    ready.notify_all();
  });
  bool in_time = true;
  {
    MutexLock lock(mu);
    while (!done && in_time) in_time = ready.wait_until(mu, deadline) || done;
  }
  if (!in_time) {
    session->refuse_parked(ENOTCONN);
    point->abort();
  }
}

base::Result<void> MountSession::Impl::unmount(Clock::time_point deadline) {
  constexpr std::chrono::seconds kStep{5};   // of umount(2), which may wait for write-out
  constexpr std::chrono::seconds kLetGo{3};  // for programs that have files open, after the lazy detach
  if (!point) return {};
  const auto now = Clock::now();
  const auto span = deadline > now ? deadline - now : Clock::duration::zero();
  const auto step = std::min<Clock::duration>(span / 4, kStep);
  const auto let_go = std::min<Clock::duration>(span / 4, kLetGo);
  base::Result<void> result;
  bool gone = false;
  bool waits = true;
  if (point->mounted()) {
    detach(false, now + step, result);
    if (!result && result.error().as_errno() == EBUSY) {
      core->log().warn("mount step=unmount busy=1 path=" + mountpoint);
      detach(true, Clock::now() + step, result);
      // Who writes may finish; who waits for an answer that does not come is told to let go then.
      gone = wait_gone(Clock::now() + let_go);
      waits = !gone && session->stats().parked != 0;
      if (waits) session->refuse_parked(ENOTCONN);
    }
  }
  if (waits) gone = wait_gone(Clock::now() + let_go);
  if (!gone) {
    core->log().warn("mount step=abort path=" + mountpoint);
    if (point->abort()) {
      wait_gone(std::min(deadline, Clock::now() + kLetGo));
    } else {
      core->log().warn("mount step=abort the connection ends with its descriptor");
    }
  }
  if (point->mounted()) {
    return result ? base::errno_error(EBUSY, "unmount " + mountpoint) : std::move(result).error();
  }
  watchdog.farewell();
  point->forget();
  core->remove(entry);
  session->finish();
  point.reset();
  return {};
}

MountSession::MountSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MountSession::~MountSession() {
  constexpr std::chrono::seconds kDropDeadline{10};
  if (auto done = impl_->unmount(Clock::now() + kDropDeadline); !done) {
    impl_->core->log().error("mount step=drop path=" + impl_->mountpoint +
                             " error=" + done.error().message());
    impl_->core->remove(impl_->entry);
    impl_->session->finish();
  }
}

const std::string& MountSession::mountpoint() const { return impl_->mountpoint; }
base::Result<void> MountSession::unmount(Clock::time_point deadline) { return impl_->unmount(deadline); }
MountStats MountSession::stats() const { return impl_->session->stats(); }
bool MountSession::wait_invalidated(Clock::time_point deadline) {
  return impl_->session->notifier().wait_idle(deadline);
}
bool MountSession::gone() const {
  MutexLock lock(impl_->entry->mu);
  return impl_->entry->gone;
}
void MountSession::on_gone(std::function<void()> fn) {
  {
    MutexLock lock(impl_->entry->mu);
    if (!impl_->entry->gone) {
      impl_->entry->on_gone = std::move(fn);
      return;
    }
  }
  fn();
}

FuseLoop::FuseLoop(FuseLoopOptions options, base::Logger& log)
    : core_(std::make_shared<Core>(options, log)) {}
FuseLoop::~FuseLoop() = default;

base::Result<std::unique_ptr<MountSession>> FuseLoop::mount(const MountOptions& options,
                                                            const FsServices& services) {
  using Found = std::pair<sync::NodeIndex, bool>;
  const auto [root, directory] = services.tree.read([&](const sync::Mirror& mirror) -> Found {
    const auto node = mirror.walk(sync::Mirror::kRoot, options.path);
    return {node, node != sync::kNoNode && S_ISDIR(mirror.attr(node).mode)};
  });
  if (root == sync::kNoNode) return base::errno_error(ENOENT, "mount " + options.path);
  if (!directory) return base::errno_error(ENOTDIR, "mount " + options.path);
  auto point = MountPoint::mount(options, core_->log());
  if (!point) return std::move(point).error();
  auto impl = std::make_unique<MountSession::Impl>();
  MountOptions shown = options;
  shown.mountpoint = (*point)->path();
  impl->core = core_;
  impl->mountpoint = shown.mountpoint;
  impl->session = std::make_shared<Session>(shown, services, core_->log(), root);
  if (auto ok = impl->session->start((*point)->take_fd()); !ok) return std::move(ok).error();
  impl->entry = core_->add(impl->session);
  impl->point = std::move(*point);
  impl->point->settle();
  if (!options.watchdog_program.empty() && !base::fault::active("fs.no_watchdog")) {
    auto dog = Watchdog::start(options.watchdog_program, shown.mountpoint, impl->point->minor());
    if (dog) {
      impl->watchdog = std::move(*dog);
    } else {
      core_->log().warn("watchdog error=" + dog.error().message());
    }
  }
  return std::make_unique<MountSession>(std::move(impl));
}

}  // namespace nearbox::fs
