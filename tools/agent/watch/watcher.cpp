// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/watcher.h"

#include <algorithm>
#include <array>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/agent/fs_path.h"

namespace nearbox::agent {
namespace {

constexpr std::chrono::hours kIdle{1};
constexpr std::size_t kReadsAStep = 64;
constexpr std::size_t kReadsBetween = 8;  // between two slices of looks

}  // namespace

// A call that the thread answers.
struct Watcher::Call {
  const void* owner = nullptr;
  EventLog* log = nullptr;  // null: a barrier
  std::uint32_t number = 0;
  RootPtr root;
  // Guarded by mu_.
  bool done = false;
  bool given_up = false;
  int error = 0;
  wire::WatchReply watch;
  wire::BarrierReply barrier;
};

class Watcher::Sink final : public HintSink {
 public:
  explicit Sink(Watcher& watcher) : w_(watcher), now_(Clock::now()) {}
  void hint(const Hint& hint) override {
    if (base::fault::active("agent.drop_changes", std::string(hint.name))) return;
    bool kept = w_.names_.add(hint, now_);
    if ((hint.flags & kHintListing) != 0) {
      kept =
          w_.names_.add({hint.dir, {}, kHintLook | (hint.flags & kHintAtOnce), {}, hint.place}, now_) && kept;
    }
    if (!kept) overflow("too many names");
  }
  void overflow(const char* why) override {
    w_.overflowed_ = true;
    w_.why_lost_ = why;
  }
  void check_roots() override { w_.check_roots_ = true; }
  bool untold(wire::NodeId dir, std::string_view name, std::string_view target) override {
    return (w_.names_.waiting_flags(dir, name) & kHintFresh) != 0 || w_.looker_.missed(target);
  }

 private:
  Watcher& w_;
  const Clock::time_point now_;
};

Watcher::Watcher(base::Logger& log, Versions& versions, std::size_t max_dirs)
    : log_(log),
      versions_(versions),
      max_dirs_(max_dirs),
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

void Watcher::op_applied(const void* owner, OwnChange change) {
  base::MutexLock lock(mu_);
  const bool others = std::any_of(roots_.begin(), roots_.end(), [&](const WatchedRoot& root) {
    return std::any_of(root.subscriptions.begin(), root.subscriptions.end(),
                       [&](const Subscription& s) { return s.owner != owner; });
  });
  if (!others) return;
  own_lost_ = own_lost_ || own_.size() >= kMaxOwnChanges;
  if (!own_lost_) own_.push_back({std::move(change), owner});
  if (own_.size() == 1 || own_lost_) wake();
}

void Watcher::op_told(std::uint64_t begun, OwnChange change) {
  if (begun % 2 == 0 && rounds_.load() == begun) return;
  base::MutexLock lock(mu_);
  own_lost_ = own_lost_ || own_.size() >= kMaxOwnChanges;
  if (!own_lost_) own_.push_back({std::move(change), nullptr});
  wake();
}

void Watcher::directory_made(const std::string& path) {
  base::MutexLock lock(mu_);
  for (const auto& root : roots_) {
    if (!root.root) continue;
    auto inside = relative(path, root.root->path);
    if (inside.empty() || own_.size() >= kMaxOwnChanges) continue;
    own_.push_back({OwnChange{root.root, {std::move(inside)}, {}, true}, nullptr});
  }
  wake();
}

// ---- the thread -------------------------------------------------------------------------------

void Watcher::run(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "watch");
  while (!stop.stop_requested()) step();
}

void Watcher::step() {
  wait();
  look_at_mounts();
  serve_calls();
  read_sources(kReadsAStep);
  drop_unused();
  round(false);
}

// Until there is something to do. Right after a round only calls are heard: events gather meanwhile.
void Watcher::wait() {
  const auto now = Clock::now();
  const auto held = last_round_ + kBatch;
  auto until = now + kIdle;
  if (const auto due = names_.next_due()) until = std::max(*due, held);
  {
    base::MutexLock lock(mu_);
    if (!own_.empty() || own_lost_) until = held;
    if (!calls_.empty() || forgot_) until = now;
  }
  if (incomplete()) until = std::min(until, incomplete_told_ + incomplete_again_);
  if (check_roots_) until = held;
  if (overflowed_) until = std::max(held, lost_told_ + kLostAgain);
  std::array<struct pollfd, 4> fds{};
  nfds_t count = 0;
  fds[count++] = {wake_.get(), POLLIN, 0};
  const bool hears = held <= now;
  if (hears && fanotify_) fds[count++] = {fanotify_->fd(), POLLIN, 0};
  if (hears && inotify_) fds[count++] = {inotify_->fd(), POLLIN, 0};
  const auto mounts = count;
  if (hears && mountinfo_) fds[count++] = {mountinfo_.get(), POLLPRI, 0};
  const bool watches = fanotify_ || inotify_;
  if (!hears && watches) until = std::min(until, held);
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
  bool more = false;
  if (base::fault::active("agent.watch_overflow")) sink.overflow("a test");
  for (auto* source : {fanotify_.get(), inotify_.get()}) {
    if (source == nullptr) continue;
    std::size_t reads = 0;
    while (reads < max_reads && source->read(sink) > 0) ++reads;
    more = more || reads == max_reads;
    if (reads == kReadsAStep && source->queued() > kMaxQueuedBytes) sink.overflow("too far behind");
  }
  return more;
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

void Watcher::serve_calls() {
  while (true) {
    std::shared_ptr<Call> call;
    {
      base::MutexLock lock(mu_);
      if (calls_.empty()) return;
      call = calls_.front();
      calls_.erase(calls_.begin());
      if (call->given_up) continue;
      served_ = call;
    }
    while (base::fault::active("agent.hold_watch")) (void)::poll(nullptr, 0, 1);
    if (call->log != nullptr) {
      add_watch(*call);
    } else {
      do_barrier(*call);
    }
    base::MutexLock lock(mu_);
    served_.reset();
    call->done = true;
    answered_.notify_all();
  }
}

void Watcher::add_watch(Call& call) {
  look_at_mounts();
  auto index = add_root(call.root);
  base::MutexLock lock(mu_);
  if (call.given_up) {  // its log may be gone
    forgot_ = true;
    return;
  }
  if (!index) {
    call.watch.kind = wire::WatchKind::kNone;
    call.watch.error = index.error().as_errno();
    call.watch.seq = call.log->last_seq();
    return;
  }
  WatchedRoot& root = roots_[*index];
  call.watch.kind = root.source->kind();
  call.watch.directories = root.source->directories();
  if (root.source->incomplete()) call.watch.error = ENOSPC;
  const bool known = std::any_of(root.subscriptions.begin(), root.subscriptions.end(), [&](const auto& s) {
    return s.owner == call.owner && s.number == call.number;
  });
  if (!known) root.subscriptions.push_back({call.owner, call.log, call.number, false});
  call.watch.seq = call.log->last_seq();
}

base::Result<std::size_t> Watcher::add_root(const RootPtr& root) {
  std::size_t index = 0;
  {
    base::MutexLock lock(mu_);
    std::size_t free = roots_.size();
    for (std::size_t i = 0; i < roots_.size(); ++i) {
      if (roots_[i].root && roots_[i].root->node == root->node) return i;
      if (!roots_[i].root) free = std::min(free, i);
    }
    if (free >= kMaxWatchedRoots) return base::errno_error(EMFILE, "watched roots");
    index = free;
  }
  if (!mountinfo_) mountinfo_.reset(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
  looker_.set_mounts(MountTable::load());
  const bool first = !fanotify_ && !inotify_;
  if (first) versions_.enable();
  Sink sink(*this);
  const auto try_source = [&](std::unique_ptr<WatchSource>& source, auto make) -> base::Result<WatchSource*> {
    const bool made = !source;
    if (made) {
      auto fresh = make();
      if (!fresh) return std::move(fresh).error();
      source = std::move(*fresh);
    }
    auto added = source->add_root(root, index, sink);
    if (added) return source.get();
    if (made) source.reset();
    return std::move(added).error();
  };
  auto source = try_source(fanotify_, [this] { return make_fanotify_source(max_dirs_); });
  if (!source) {
    log_.info("event=no_fanotify error=\"" + source.error().message() + "\"");
    source = try_source(inotify_, make_inotify_source);
  }
  if (!source) {
    log_.warn("event=no_watch error=\"" + source.error().message() + "\"");
    if (first) versions_.disable();
    return std::move(source).error();
  }
  base::MutexLock lock(mu_);
  if (roots_.size() <= index) roots_.resize(index + 1);
  roots_[index] = {root, *source, MountTable::load().ordinary_below(root->path), {}, {}};
  return index;
}

void Watcher::do_barrier(Call& call) {
  look_at_mounts();
  read_queued();
  if (incomplete()) retry_unwatched();
  round(true);
  tell_unwatched();
  base::MutexLock lock(mu_);
  for (auto& root : roots_) {
    for (auto& to : root.subscriptions) {
      if (to.owner != call.owner || to.number != call.number) continue;
      if (to.behind) {
        to.behind = false;
        (void)give_locked(to, wire::EventKind::kLost, wire::encode(wire::Lost{to.number, "", true, false}));
      }
      call.barrier.seq = to.log->last_seq();
      return;
    }
  }
  call.error = EOPNOTSUPP;
}

// Roots that nobody watches any more; without any the kernel's queues are closed.
void Watcher::drop_unused() {
  std::vector<std::size_t> unused;
  bool any = false;
  {
    base::MutexLock lock(mu_);
    if (!std::exchange(forgot_, false)) return;
    for (std::size_t i = 0; i < roots_.size(); ++i) {
      if (!roots_[i].root) continue;
      if (!roots_[i].subscriptions.empty()) {
        any = true;
        continue;
      }
      unused.push_back(i);
      roots_[i].root.reset();
    }
  }
  for (const auto index : unused) {
    if (fanotify_) fanotify_->remove_root(index);
    if (inotify_) inotify_->remove_root(index);
  }
  if (any || (!fanotify_ && !inotify_)) return;
  versions_.disable();
  fanotify_.reset();
  inotify_.reset();
  mountinfo_.reset();
  names_.clear();
  overflowed_ = false;
}

// What came to be mounted below the roots is watched as well; what is there now is for the clients to read.
void Watcher::look_at_mounts() {
  struct pollfd changed {
    mountinfo_.get(), POLLPRI, 0
  };
  if (!mountinfo_) return;
  const bool more = ::poll(&changed, 1, 0) > 0;
  if (!std::exchange(mounts_changed_, false) && !more) return;
  const auto mounts = MountTable::load();
  looker_.set_mounts(mounts);
  const auto used = used_roots();
  for (std::size_t index = 0; index < used.size(); ++index) {
    if (!used.test(index)) continue;
    WatchedRoot at;
    {
      base::MutexLock lock(mu_);
      at.root = roots_[index].root;
      at.source = roots_[index].source;
      at.mounts = roots_[index].mounts;
    }
    const auto now = mounts.ordinary_below(at.root->path);
    std::vector<std::string> differ;
    std::set_symmetric_difference(now.begin(), now.end(), at.mounts.begin(), at.mounts.end(),
                                  std::back_inserter(differ));
    std::vector<std::string> unwatched;
    for (const auto& path : differ) {
      if (auto added = at.source->add_mount(at.root, path); !added) {
        log_.warn("event=no_watch error=\"" + added.error().message() + "\"");
        unwatched.push_back(path);
      }
    }
    base::MutexLock lock(mu_);
    for (const auto& path : differ) {
      own_.push_back({OwnChange{at.root, {relative(path, at.root->path)}, {}, true}, nullptr});
    }
    roots_[index].mounts = now;
    for (auto& path : unwatched) roots_[index].unwatched.push_back(std::move(path));
    std::erase_if(roots_[index].unwatched,
                  [&](const std::string& path) { return !std::binary_search(now.begin(), now.end(), path); });
  }
}

void Watcher::tell_unwatched() {
  base::MutexLock lock(mu_);
  for (auto& root : roots_) {
    for (const auto& path : root.unwatched) {
      versions_.bump_all();
      for (auto& to : root.subscriptions) {
        const wire::Lost lost{to.number, relative(path, root.root->path), true, true};
        (void)give_locked(to, wire::EventKind::kLost, wire::encode(lost));
      }
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

// Looks at what is due, or at everything that waits, and tells it.
void Watcher::round(bool everything) {
  const auto now = Clock::now();
  if (!everything && now < last_round_ + kBatch) return;
  if (incomplete() && now >= incomplete_told_ + incomplete_again_) retry_unwatched();
  const auto due = names_.next_due();
  bool own = false;
  {
    base::MutexLock lock(mu_);
    own = !own_.empty() || own_lost_;
  }
  if (!own && !overflowed_ && !check_roots_ && (!due || (*due > now && !everything))) return;
  // Clients that read everything again come to nothing if it is lost all the time.
  if (overflowed_ && !everything && now < lost_told_ + kLostAgain) return;
  rounds_.fetch_add(1);
  Findings found;
  look_at_own(found);
  std::vector<Seen> gone = std::move(found.gone);
  while (!overflowed_) {
    auto items = names_.take(now, kLooksAtOnce, everything);
    if (items.empty()) break;
    Findings part;
    look(items, part);
    tell(part.there);
    tell_lost_dirs(part.lost);
    std::move(part.gone.begin(), part.gone.end(), std::back_inserter(gone));
    // What is read here is due later than now, or flagged into what waits already.
    if (!everything && items.size() == kLooksAtOnce) read_sources(kReadsBetween);
  }
  tell(gone);
  if (std::exchange(check_roots_, false)) check_roots();
  if (std::exchange(overflowed_, false)) everything_lost(why_lost_);
  rounds_.fetch_add(1);
  last_round_ = Clock::now();
}

void Watcher::look(std::vector<Coalescer::Item>& items, Findings& out) {
  const auto every = used_roots();
  for (auto from = items.begin(); from != items.end();) {
    auto to = from;
    while (to != items.end() && to->dir == from->dir) ++to;
    // A node without a directory, or a directory of either source: its file system tells.
    WatchSource* source = fanotify_ ? fanotify_.get() : inotify_.get();
    if (inotify_ && fanotify_ && from->dir != wire::NodeId{} && inotify_->roots_of(from->dir).any()) {
      source = inotify_.get();
    }
    if (source != nullptr) looker_.look(*source, from, to, every, out);
    from = to;
  }
}

RootSet Watcher::used_roots() {
  RootSet used;
  base::MutexLock lock(mu_);
  for (std::size_t i = 0; i < roots_.size(); ++i) used.set(i, roots_[i].root != nullptr);
  return used;
}

void Watcher::look_at_own(Findings& out) {
  std::vector<Own> own;
  {
    base::MutexLock lock(mu_);
    own.swap(own_);
    if (std::exchange(own_lost_, false)) {
      overflowed_ = true;
      why_lost_ = "too many operations";
    }
  }
  (void)out;
  for (const auto& one : own) {
    Findings found;
    look_at_one(one, found);
    tell(found.there, one.except);
    tell_lost_dirs(found.lost);
    tell(found.gone, one.except);
  }
}

void Watcher::look_at_one(const Own& own, Findings& out) {
  bool shown = false;
  for (const auto& path : own.change.paths) {
    auto place = open_place(own.change.root->dir.get(), path);
    auto dir = place ? stat_fd(place->dir.get()) : base::Result<Stat>(base::errno_error(ENOENT));
    if (!dir) continue;
    const auto node = node_of(*dir);
    for (auto* source : {fanotify_.get(), inotify_.get()}) {
      if (source == nullptr) continue;
      source->entered(place->dir.get(), node, {}, {});
      const auto roots = source->roots_of(node);
      if (roots.none()) continue;
      const auto flags = kHintLook | (own.change.made ? kHintFresh : 0U);
      looker_.look_at(*source, place->dir.get(), {node, path.empty() ? "" : place->name, flags, {}, {}},
                      roots, out);
      looker_.look_at(*source, place->dir.get(), {node, "", kHintLook, {}, {}}, roots, out);
      break;
    }
  }
  for (const auto& seen : out.there) {
    shown =
        shown || (seen.state.attr.ino == own.change.attr.ino && seen.state.attr.dev == own.change.attr.dev);
  }
  // Renamed since: by its node, then.
  if (shown || own.change.attr.ino == 0) return;
  wire::NameState state;
  state.dir = {own.change.attr.dev, own.change.attr.ino};
  state.attr = own.change.attr;
  out.there.push_back({std::move(state), used_roots()});
}

}  // namespace nearbox::agent
