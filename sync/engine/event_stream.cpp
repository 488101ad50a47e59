// SPDX-License-Identifier: Apache-2.0
#include "sync/engine/event_stream.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <pthread.h>
#include <sys/random.h>
#include <thread>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "client/wire/paths.h"

namespace nearbox::sync {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto kConfirmAfter = 50ms;
constexpr std::uint64_t kConfirmEvents = 256;
constexpr auto kFirstPause = 100ms;  // before a subscription that ended is made again
constexpr auto kLongestPause = 5s;
constexpr auto kIdle = 1h;
constexpr std::size_t kMaxRecord = wire::kMaxEventBytes + 64;  // an event with its sequence and kind
constexpr std::uint32_t kCredit = 1024 * 1024;

std::uint64_t fresh_nonce() {
  std::uint64_t nonce = 0;
  while (nonce == 0) {
    if (::getrandom(&nonce, sizeof nonce, 0) != sizeof nonce) nonce = 0;
  }
  return nonce;
}

bool valid(const wire::Changed& changed) {
  return std::all_of(changed.states.begin(), changed.states.end(), [](const wire::NameState& state) {
    return state.name.empty() || wire::valid_name(state.name);
  });
}

// Cuts a byte stream into length-prefixed events. Keeps at most one record between calls.
class Cutter {
 public:
  void reset() { pending_.clear(); }
  // False when the bytes break the format; nothing of them is to be used then but `out`.
  bool feed(wire::ByteView bytes, std::vector<wire::Event>& out) {
    while (!bytes.empty()) {
      std::uint32_t size = 0;
      const auto wanted = [&] { return pending_.size() < sizeof size ? sizeof size : sizeof size + size; };
      if (pending_.size() >= sizeof size) std::memcpy(&size, pending_.data(), sizeof size);
      const auto taken = std::min(wanted() - pending_.size(), bytes.size());
      pending_.insert(pending_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
      bytes = bytes.subspan(taken);
      if (pending_.size() < sizeof size) return true;
      std::memcpy(&size, pending_.data(), sizeof size);
      if (size == 0 || size > kMaxRecord) return false;
      if (pending_.size() < sizeof size + size) continue;
      auto event = wire::decode<wire::Event>(wire::ByteView(pending_).subspan(sizeof size));
      pending_.clear();
      if (!event) return false;
      out.push_back(std::move(*event));
    }
    return true;
  }

 private:
  wire::Bytes pending_;
};

}  // namespace

// One subscription is current at a time: what comes of another one is not looked at.
struct EventStream::Impl : api::LinkObserver, std::enable_shared_from_this<EventStream::Impl> {
  class Sink;

  Impl(api::AgentLink& to, base::Logger& logger) : link(to), log(logger) {}

  void on_up(const wire::Welcome& welcome, bool same_instance) noexcept override;
  void on_down(const base::Error&) noexcept override {}

  void subscribe(std::uint64_t for_generation);
  void ended(std::uint64_t number, int error);
  void deliver(std::uint64_t number, std::vector<wire::Event> events);
  bool deliver_one(const wire::Event& event);
  bool take(std::uint64_t number, std::uint64_t seq, bool& gap);
  void handled_one(std::uint64_t number, std::uint64_t seq, std::uint32_t tag);
  void wait(std::uint64_t for_instance, std::uint64_t seq, HandledFn fn);
  void broken(std::uint64_t number, const char* what);
  void in_order(std::function<void()> task);
  void run(const std::stop_token& stop) noexcept;
  void stop();

  api::AgentLink& link;
  base::Logger& log;
  OpDoneFn op_done;
  ProcExitFn proc_exit;
  NewInstanceFn new_instance;
  ChangedFn changed_fn;
  LostFn lost_fn;

  base::Mutex mu;  // rank: leaf
  base::CondVar changed;
  bool started GUARDED_BY(mu) = false;
  bool stopped GUARDED_BY(mu) = false;
  std::uint64_t generation GUARDED_BY(mu) = 0;
  std::uint64_t instance GUARDED_BY(mu) = 0;
  std::uint64_t call GUARDED_BY(mu) = 0;  // number of the current subscription; 0: none
  std::uint64_t next_call GUARDED_BY(mu) = 1;
  api::CallToken token GUARDED_BY(mu) = 0;
  std::uint64_t handled GUARDED_BY(mu) = 0;                        // newest event the listeners have seen
  std::uint32_t handled_tag GUARDED_BY(mu) = 0;                    // of that event
  std::uint64_t confirmed GUARDED_BY(mu) = 0;                      // newest event told to the agent
  std::uint64_t newest GUARDED_BY(mu) = 0;                         // that somebody waits for
  std::multimap<std::uint64_t, HandledFn> waiting GUARDED_BY(mu);  // by event of this instance
  Clock::time_point confirm_at GUARDED_BY(mu) = Clock::time_point::max();
  Clock::time_point subscribe_at GUARDED_BY(mu) = Clock::time_point::max();
  Clock::duration pause GUARDED_BY(mu) = kFirstPause;
  // Listeners run one after another whatever thread brings them work: who comes while one runs
  // leaves it here. Short: at most what one chunk and one on_up() bring.
  std::deque<std::function<void()>> tasks GUARDED_BY(mu);
  bool busy GUARDED_BY(mu) = false;
  std::jthread thread;  // set by start(), joined by stop()
};

// Cuts on the link's thread, so that a position to resume from exists at any time.
class EventStream::Impl::Sink : public api::CallSink {
 public:
  Sink(std::shared_ptr<Impl> impl, std::uint64_t call, wire::Subscribe from)
      : impl_(std::move(impl)), call_(call), from_(from) {}

  void on_chunk(wire::ByteView bytes) noexcept override {
    if (dead_) return;
    std::vector<wire::Event> events;
    const bool good = cutter_.feed(bytes, events);
    if (!events.empty()) {
      if (events.back().seq > from_.after_seq) {
        from_.after_seq = events.back().seq;
        from_.tag = events.back().tag;
      }
      impl_->deliver(call_, std::move(events));
    }
    if (good) return;
    dead_ = true;
    impl_->broken(call_, "record");
  }
  void on_end(int error, wire::ByteView) noexcept override { impl_->ended(call_, error); }
  std::optional<wire::Bytes> on_lost() noexcept override {
    if (dead_) return std::nullopt;
    cutter_.reset();
    return wire::encode(from_);
  }

 private:
  const std::shared_ptr<Impl> impl_;
  const std::uint64_t call_;
  wire::Subscribe from_;
  Cutter cutter_;
  bool dead_ = false;
};

void EventStream::Impl::on_up(const wire::Welcome& welcome, bool same_instance) noexcept {
  std::uint64_t mine = 0;
  api::CallToken old = 0;
  std::multimap<std::uint64_t, HandledFn> in_vain;
  {
    base::MutexLock lock(mu);
    if (stopped) return;
    const bool first = generation == 0;
    if (same_instance && !first) {
      // Confirmations may have been dropped with the connection.
      if (handled > 0) confirm_at = Clock::now();
      if (subscribe_at != Clock::time_point::max()) subscribe_at = Clock::now();
      changed.notify_all();
      return;
    }
    mine = ++generation;
    instance = welcome.instance;
    handled = confirmed = newest = 0;
    handled_tag = 0;
    in_vain.swap(waiting);
    call = 0;
    confirm_at = subscribe_at = Clock::time_point::max();
    pause = kFirstPause;
    old = std::exchange(token, 0);
  }
  if (old != 0) link.cancel(old);
  in_order([this, now = welcome.instance] {
    if (new_instance) new_instance(now);
  });
  for (const auto& [seq, fn] : in_vain) fn(ECONNRESET);
  subscribe(mine);
}

void EventStream::Impl::subscribe(std::uint64_t for_generation) {
  wire::Subscribe from;
  std::uint64_t number = 0;
  {
    base::MutexLock lock(mu);
    if (stopped || generation != for_generation || call != 0) return;
    call = number = next_call++;
    subscribe_at = Clock::time_point::max();
    from = {instance, handled, handled_tag};
  }
  api::CallOptions options;
  options.deadline = Clock::time_point::max();
  options.no_deadline = true;
  options.credit = kCredit;
  const auto made = link.call(wire::Method::kSubscribe, wire::encode(from),
                              std::make_unique<Sink>(shared_from_this(), number, from), options);
  bool unwanted = false;
  {
    base::MutexLock lock(mu);
    unwanted = stopped || call != number;
    if (!unwanted) token = made;
  }
  if (unwanted) link.cancel(made);
}

void EventStream::Impl::ended(std::uint64_t number, int error) {
  {
    base::MutexLock lock(mu);
    if (stopped || call != number) return;
    call = 0;
    token = 0;
    if (error == ESHUTDOWN) return;
    subscribe_at = Clock::now() + pause;
    pause = std::min<Clock::duration>(pause * 2, kLongestPause);
    changed.notify_all();
  }
  log.warn("event=subscription_ended errno=" + std::to_string(error));
  // A copy of the agent we knew, which went its own way since; or our session is lost there.
  if (error == ESTALE || error == EOVERFLOW) link.renew_session();
}

void EventStream::Impl::broken(std::uint64_t number, const char* what) {
  api::CallToken ending = 0;
  {
    base::MutexLock lock(mu);
    if (stopped || call != number) return;
    ending = token;
    call = 0;  // whatever still comes of it is not looked at
    token = 0;
    subscribe_at = Clock::now() + pause;
    pause = std::min<Clock::duration>(pause * 2, kLongestPause);
    changed.notify_all();
  }
  log.error(std::string("event=bad_event_stream what=") + what);
  if (ending != 0) link.cancel(ending);
}

void EventStream::Impl::deliver(std::uint64_t number, std::vector<wire::Event> events) {
  in_order([this, number, events = std::move(events)] {
    for (const auto& event : events) {
      bool gap = false;
      if (!take(number, event.seq, gap)) {
        if (!gap) continue;
        broken(number, "gap");
        return;
      }
      if (!deliver_one(event)) {
        broken(number, "body");
        return;
      }
      handled_one(number, event.seq, event.tag);
    }
  });
}

// Whether the event is the next one.
bool EventStream::Impl::take(std::uint64_t number, std::uint64_t seq, bool& gap) {
  base::MutexLock lock(mu);
  if (stopped || call != number) return false;
  gap = seq > handled + 1;
  return seq == handled + 1;
}

bool EventStream::Impl::deliver_one(const wire::Event& event) {
  switch (event.kind) {
    case wire::EventKind::kOpDone: {
      const auto body = wire::decode<wire::OpDone>(event.body);
      if (body && op_done) op_done(*body);
      return body.has_value();
    }
    case wire::EventKind::kProcExit: {
      const auto body = wire::decode<wire::ProcExit>(event.body);
      if (body && proc_exit) proc_exit(*body);
      return body.has_value();
    }
    case wire::EventKind::kChanged: {
      const auto body = wire::decode<wire::Changed>(event.body);
      if (!body || !valid(*body)) return false;
      if (changed_fn) changed_fn(*body);
      return true;
    }
    case wire::EventKind::kLost: {
      const auto body = wire::decode<wire::Lost>(event.body);
      if (!body || !wire::valid_path(body->path)) return false;
      if (lost_fn) lost_fn(*body);
      return true;
    }
  }
  return true;  // of a newer agent: not for us
}

void EventStream::Impl::handled_one(std::uint64_t number, std::uint64_t seq, std::uint32_t tag) {
  std::vector<HandledFn> reached;
  {
    base::MutexLock lock(mu);
    if (call != number) return;
    handled = seq;
    handled_tag = tag;
    newest = std::max(newest, seq);
    pause = kFirstPause;
    const auto was = confirm_at;
    if (confirm_at == Clock::time_point::max()) confirm_at = Clock::now() + kConfirmAfter;
    if (handled - confirmed >= kConfirmEvents) confirm_at = Clock::now();
    if (confirm_at != was) changed.notify_all();
    const auto end = waiting.upper_bound(seq);
    for (auto at = waiting.begin(); at != end; ++at) reached.push_back(std::move(at->second));
    waiting.erase(waiting.begin(), end);
  }
  for (const auto& fn : reached) fn(0);
}

void EventStream::Impl::wait(std::uint64_t for_instance, std::uint64_t seq, HandledFn fn) {
  int error = 0;
  {
    base::MutexLock lock(mu);
    if (stopped) {
      error = ESHUTDOWN;
    } else if (for_instance != instance) {
      error = ECONNRESET;
    } else if (seq > handled) {
      if (waiting.size() < kMaxWaiting) {
        newest = std::max(newest, seq);
        waiting.emplace(seq, std::move(fn));
        return;
      }
      error = EAGAIN;
    }
  }
  fn(error);
}

void EventStream::Impl::in_order(std::function<void()> task) {
  {
    base::MutexLock lock(mu);
    tasks.push_back(std::move(task));
    if (busy) return;
    busy = true;
  }
  while (true) {
    {
      base::MutexLock lock(mu);
      if (tasks.empty() || stopped) {
        busy = false;
        changed.notify_all();
        return;
      }
      task = std::move(tasks.front());
      tasks.pop_front();
    }
    task();
  }
}

// Sends what is due: confirmations, and a subscription in place of one that ended.
void EventStream::Impl::run(const std::stop_token& stop) noexcept {
  ::pthread_setname_np(::pthread_self(), "events");
  while (!stop.stop_requested()) {
    wire::Confirm confirm;
    std::uint64_t again = 0;
    {
      base::MutexLock lock(mu);
      const auto now = Clock::now();
      if (!stopped && confirm_at > now && subscribe_at > now) {
        changed.wait_until(mu, std::min({confirm_at, subscribe_at, now + kIdle}));
        continue;
      }
      if (stopped) return;
      if (confirm_at <= now) {
        confirm.seq = confirmed = handled;
        confirm_at = Clock::time_point::max();
      }
      if (subscribe_at <= now) {
        again = generation;
        subscribe_at = Clock::time_point::max();
      }
    }
    if (confirm.seq != 0) {
      confirm.nonce = fresh_nonce();
      link.note(wire::Method::kConfirm, wire::encode(confirm));
    }
    if (again != 0) subscribe(again);
  }
}

void EventStream::Impl::stop() {
  api::CallToken ending = 0;
  {
    base::MutexLock lock(mu);
    if (!started) return;
    started = false;
    stopped = true;
    ending = std::exchange(token, 0);
    call = 0;
    changed.notify_all();
  }
  link.remove_observer(this);
  if (ending != 0) link.cancel(ending);
  thread.request_stop();
  thread.join();
  std::multimap<std::uint64_t, HandledFn> in_vain;
  {
    base::MutexLock lock(mu);
    while (busy) changed.wait_until(mu, Clock::now() + kIdle);
    tasks.clear();
    in_vain.swap(waiting);
  }
  for (const auto& [seq, fn] : in_vain) fn(ESHUTDOWN);
}

EventStream::EventStream(api::AgentLink& link, base::Logger& log)
    : impl_(std::make_shared<Impl>(link, log)) {}
EventStream::~EventStream() { stop(); }
void EventStream::on_op_done(OpDoneFn fn) { impl_->op_done = std::move(fn); }
void EventStream::on_proc_exit(ProcExitFn fn) { impl_->proc_exit = std::move(fn); }
void EventStream::on_new_instance(NewInstanceFn fn) { impl_->new_instance = std::move(fn); }
void EventStream::on_changed(ChangedFn fn) { impl_->changed_fn = std::move(fn); }
void EventStream::on_lost(LostFn fn) { impl_->lost_fn = std::move(fn); }

EventStream::Position EventStream::position() const {
  base::MutexLock lock(impl_->mu);
  return {impl_->instance, impl_->handled, impl_->newest};
}

void EventStream::when_handled(std::uint64_t instance, std::uint64_t seq, HandledFn fn) {
  impl_->wait(instance, seq, std::move(fn));
}

void EventStream::start() {
  {
    base::MutexLock lock(impl_->mu);
    if (impl_->started || impl_->stopped) return;
    impl_->started = true;
  }
  impl_->thread = std::jthread([impl = impl_.get()](const std::stop_token& stop) { impl->run(stop); });
  impl_->link.add_observer(impl_.get());
}

void EventStream::stop() { impl_->stop(); }

}  // namespace nearbox::sync
