// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <ctime>
#include <iterator>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/agent/watch/watcher_impl.h"

namespace nearbox::agent {
namespace {

constexpr std::chrono::hours kIdle{1};
constexpr std::size_t kReadsAStep = 64;
constexpr std::size_t kReadsBetween = 8;  // between two slices of looks

// Of this thread: what others made it wait for is no work of its own.
std::chrono::nanoseconds cpu_time() {
  struct timespec now {};
  (void)::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

}  // namespace

Watcher::Watcher(base::Logger& log, Versions& versions, const Limits& limits)
    : log_(log),
      versions_(versions),
      limits_(limits),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      looker_(versions, names_) {}

Watcher::~Watcher() {
  std::jthread thread;
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    for (auto& call : calls_) {
      call->done = true;
      call->error = ESHUTDOWN;
    }
    calls_.clear();
    answered_.notify_all();
    thread = std::move(thread_);
  }
  if (thread.joinable()) {
    thread.request_stop();
    wake();
    thread.join();
  }
  if (versions_.enabled() && (fanotify_ || inotify_)) versions_.disable();
}

void Watcher::wake() const { (void)::eventfd_write(wake_.get(), 1); }

base::Result<void> Watcher::post(const std::shared_ptr<Call>& call, Clock::time_point deadline) {
  base::MutexLock lock(mu_);
  if (stopping_) return base::errno_error(ESHUTDOWN, "watch");
  if (calls_.size() >= kMaxWatchCalls) return base::errno_error(EBUSY, "watch");
  if (!thread_.joinable()) {
    if (!wake_) return base::errno_error(EMFILE, "watch");
    try {
      thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
    } catch (const std::system_error&) {
      return base::errno_error(EAGAIN, "watch");
    }
  }
  calls_.push_back(call);
  wake();
  while (!call->done) {
    if (answered_.wait_until(mu_, deadline) || call->done) continue;
    call->given_up = true;
    return base::errno_error(ETIMEDOUT, "watch");
  }
  if (call->error != 0) return base::errno_error(call->error, "watch");
  return {};
}

base::Result<wire::WatchReply> Watcher::watch(const void* owner, EventLog& log, std::uint32_t number,
                                              const RootPtr& root, Clock::time_point deadline) {
  auto call = std::make_shared<Call>();
  call->owner = owner;
  call->log = &log;
  call->number = number;
  call->root = root;
  if (auto done = post(call, deadline); !done) return std::move(done).error();
  return call->watch;
}

base::Result<wire::BarrierReply> Watcher::barrier(const void* owner, std::uint32_t number,
                                                  Clock::time_point deadline) {
  if (!watching()) return base::errno_error(EOPNOTSUPP, "barrier");
  auto call = std::make_shared<Call>();
  call->owner = owner;
  call->number = number;
  if (auto done = post(call, deadline); !done) return std::move(done).error();
  return call->barrier;
}

void Watcher::forget(const void* owner) {
  base::MutexLock lock(mu_);
  const auto give_up = [&](const std::shared_ptr<Call>& call) {
    if (!call || call->owner != owner || call->done) return false;
    call->given_up = true;
    call->done = true;
    call->error = ESHUTDOWN;
    return true;
  };
  (void)give_up(served_);
  std::erase_if(calls_, give_up);
  answered_.notify_all();
  for (auto& root : roots_) {
    std::erase_if(root.subscriptions, [&](const Subscription& s) { return s.owner == owner; });
  }
  std::erase_if(own_, [&](const Own& own) { return own.except == owner; });
  forgot_ = true;
  if (thread_.joinable()) wake();
}

// ---- the thread -------------------------------------------------------------------------------

void Watcher::run(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "watch");
  while (!stop.stop_requested()) step();
}

void Watcher::step() {
  wait();
  const auto begun = cpu_time();
  const auto worked = [this] { return std::make_pair(last_heard_, last_round_); };
  const auto before = worked();
  look_at_mounts();
  serve_calls();
  const bool behind = read_sources(kReadsAStep);
  drop_unused();
  (void)round(false);
  // Whoever rests while more comes than was read falls behind for good.
  const auto rest = std::clamp<Clock::duration>(kPauseFor * (cpu_time() - begun), kBatch, kLongestBatch);
  if (worked() != before) pause_ = behind ? kBatch : rest;
  if (any_foreign_ && Clock::now() >= foreign_told_ + kForeignAgain)
    tell_foreign(std::chrono::milliseconds(0));
}

// Until there is something to do. Right after a round, and after events were read, only calls are heard:
// events gather meanwhile, since hearing of each by itself costs more than looking at what it is about.
void Watcher::wait() {
  const auto now = Clock::now();
  const auto held = last_round_ + pause_;
  auto until = now + kIdle;
  if (const auto due = names_.next_due()) until = std::max(*due, held);
  {
    base::MutexLock lock(mu_);
    if (!own_.empty() || own_lost_ || !put_off_.empty()) until = held;
    if (!calls_.empty() || forgot_) until = now;
  }
  if (incomplete()) until = std::min(until, incomplete_told_ + incomplete_again_);
  if (any_foreign_) until = std::min(until, foreign_told_ + kForeignAgain);
  if (const auto storm = storms_.next_due()) until = std::min(until, std::max(*storm, held));
  if (check_roots_) until = held;
  if (overflowed_) until = std::max(held, lost_told_ + kLostAgain);
  std::array<struct pollfd, 4> fds{};
  nfds_t count = 0;
  fds[count++] = {wake_.get(), POLLIN, 0};
  const auto deaf = std::max(last_round_, last_heard_) + pause_;
  const bool hears = deaf <= now;
  if (hears && fanotify_) fds[count++] = {fanotify_->fd(), POLLIN, 0};
  if (hears && inotify_) fds[count++] = {inotify_->fd(), POLLIN, 0};
  const auto mounts = count;
  if (hears && mountinfo_) fds[count++] = {mountinfo_.get(), POLLPRI, 0};
  const bool watches = fanotify_ || inotify_;
  if (!hears && watches) until = std::min(until, deaf);
  const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(until - now).count();
  if (left > 0) {
    const struct timespec timeout { left / 1'000'000'000, left % 1'000'000'000 };
    (void)::ppoll(fds.data(), count, &timeout, nullptr);
    // Said to one poll only: linux v6.1 fs/proc_namespace.c, mounts_poll().
    mounts_changed_ = mounts_changed_ || (count > mounts && fds[mounts].revents != 0);
  }
  eventfd_t ignored = 0;
  (void)::eventfd_read(wake_.get(), &ignored);
}

// True: more may be there.
bool Watcher::read_sources(std::size_t max_reads) {
  Sink sink(*this);
  const auto until = Clock::now() + kReadFor;
  bool more = false;
  if (base::fault::active("agent.watch_overflow")) sink.overflow("a test");
  for (auto* source : {fanotify_.get(), inotify_.get()}) {
    if (source == nullptr) continue;
    std::size_t reads = 0;
    while (reads < max_reads && Clock::now() < until && source->read(sink) > 0) ++reads;
    const auto now = Clock::now();
    if (reads > 0) last_heard_ = now;
    const bool unread = reads == max_reads || now >= until;
    more = more || unread;
    if (max_reads == kReadsAStep && unread && source->queued() > limits_.queued_bytes) skip_queued(*source);
  }
  return more;
}

// Too much is queued to be looked at name by name: the clients read those directories again.
void Watcher::skip_queued(WatchSource& source) {
  log_.warn("event=watch_behind");
  Sink sink(*this, true);
  auto left = source.queued();
  while (left > 0) {
    const auto got = source.read(sink);
    if (got == 0) break;
    left -= std::min(left, got);
  }
  check_roots_ = true;
}

// All that was queued when it began.
void Watcher::read_queued() {
  Sink sink(*this);
  if (base::fault::active("agent.watch_overflow")) sink.overflow("a test");
  for (auto* source : {fanotify_.get(), inotify_.get()}) {
    if (source == nullptr) continue;
    auto left = source->queued();
    while (left > 0) {
      const auto got = source->read(sink);
      if (got == 0) break;
      left -= std::min(left, got);
    }
  }
}

// What is past the limit of watches is listed again, and watched where that has become possible.
void Watcher::retry_unwatched() {
  Sink sink(*this);
  incomplete_told_ = Clock::now();
  if (inotify_->retry(sink)) {
    incomplete_again_ = kIncompleteAgain;
    return;
  }
  incomplete_again_ = std::min(2 * incomplete_again_, kLongestAgain);
  sink.overflow("the limit of inotify watches");
}

// Looks at what is due, or at everything that waits, and tells it. False: something waits still.
bool Watcher::round(bool everything) {
  const auto now = Clock::now();
  if (!everything && now < last_round_ + pause_) return false;
  if (incomplete() && now >= incomplete_told_ + incomplete_again_) retry_unwatched();
  look_at_put_off();
  const auto due = names_.next_due();
  bool own = false;
  {
    base::MutexLock lock(mu_);
    own = !own_.empty() || own_lost_;
  }
  const auto storm = storms_.next_due();
  const bool storms = storm && (everything || *storm <= now);
  const bool names = due && (everything || *due <= now);
  if (!own && !overflowed_ && !check_roots_ && !names && !storms) return true;
  // Clients that read everything again come to nothing if it is lost all the time.
  if (overflowed_ && !everything && now < lost_told_ + kLostAgain) return false;
  rounds_.fetch_add(1);
  look_at_own();
  std::vector<Seen> gone;
  std::size_t tries = 0;
  do {
    look_at_waiting(now, everything, gone);
    tell(gone);  // what was overtaken waits again
  } while (everything && !overflowed_ && names_.pending() && ++tries < kMaxLooksAgain);
  const bool all = !names_.pending() || overflowed_;
  if (storms) tell_storms(everything);
  if (std::exchange(check_roots_, false)) check_roots();
  if (std::exchange(overflowed_, false)) everything_lost(why_lost_);
  {
    base::MutexLock lock(mu_);
    done_.forget();
  }
  rounds_.fetch_add(1);
  last_round_ = Clock::now();
  return all;
}

void Watcher::look_at_waiting(Clock::time_point now, bool everything, std::vector<Seen>& gone) {
  while (!overflowed_) {
    const auto as_of = done_.now();
    auto items = names_.take(now, kLooksAtOnce, everything);
    if (items.empty()) break;
    Findings part;
    look(items, part);
    for (auto& seen : part.there) seen.as_of = as_of;
    for (auto& seen : part.gone) seen.as_of = as_of;
    tell(part.there);
    tell_lost_dirs(part.lost);
    std::move(part.gone.begin(), part.gone.end(), std::back_inserter(gone));
    // What is read here is due later than now, or flagged into what waits already.
    if (!everything && items.size() == kLooksAtOnce) read_sources(kReadsBetween);
  }
}

void Watcher::look(std::vector<Coalescer::Item>& items, Findings& out) {
  const auto every = used_roots();
  TreeViews views(fanotify_.get(), inotify_.get());
  for (auto from = items.begin(); from != items.end();) {
    auto to = from;
    while (to != items.end() && to->dir == from->dir) ++to;
    looker_.look(views, from, to, every, out);
    from = to;
  }
}

RootSet Watcher::used_roots() {
  RootSet used;
  base::MutexLock lock(mu_);
  for (std::size_t i = 0; i < roots_.size(); ++i) used.set(i, roots_[i].root != nullptr);
  return used;
}

}  // namespace nearbox::agent
