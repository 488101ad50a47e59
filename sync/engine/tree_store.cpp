// SPDX-License-Identifier: Apache-2.0
#include "sync/engine/tree_store.h"

#include <algorithm>
#include <cerrno>
#include <sys/stat.h>
#include <thread>

#include "client/wire/paths.h"
#include "sync/engine/tree_store_impl.h"

namespace nearbox::sync {

using namespace std::chrono_literals;

// ---- life

bool TreeStore::Impl::enter() {
  base::MutexLock lock(mu);
  if (closed) return false;
  ++active;
  return true;
}

void TreeStore::Impl::leave() {
  base::MutexLock lock(mu);
  if (--active == 0 && closed) idle.notify_all();
}

void TreeStore::Impl::close() {
  link.remove_observer(this);
  std::unordered_set<CompletionPtr> left;
  std::map<std::uint64_t, api::CallToken> running;
  {
    base::MutexLock lock(mu);
    closed = true;
    while (active > 0) idle.wait_until(mu, Clock::now() + 1h);
    left.swap(live);
    running.swap(calls);
  }
  for (const auto& [id, token] : running) {
    if (token != 0) link.cancel(token);
  }
  for (const auto& one : left) {
    timers.cancel(one->timer);
    one->run(ECANCELED);
  }
}

CompletionPtr TreeStore::Impl::completion(Done done, Deadline deadline) {
  auto one = std::make_shared<Completion>(std::move(done));
  {
    base::MutexLock lock(mu);
    live.insert(one);
  }
  deadline = std::min(deadline, Clock::now() + 24h * 365);
  one->timer = timers.at(deadline, [weak = weak_from_this(), one] {
    const auto impl = weak.lock();
    if (!impl) return;
    if (const Use use(*impl); use) impl->finish(one, ETIMEDOUT);
  });
  return one;
}

void TreeStore::Impl::finish(const CompletionPtr& one, int error) {
  {
    base::MutexLock lock(mu);
    if (live.erase(one) == 0) return;
  }
  timers.cancel(one->timer);
  one->run(error);
}

void TreeStore::Impl::finish(const Completions& all, int error) {
  for (const auto& one : all) finish(one, error);
}

// On the timer thread: the caller may hold locks that the completion takes.
void TreeStore::Impl::finish_soon(const CompletionPtr& one, int error) {
  later(0ms, [this, one, error] { finish(one, error); });
}

void TreeStore::Impl::later(std::chrono::milliseconds delay, std::function<void()> fn) {
  timers.after(delay, [weak = weak_from_this(), fn = std::move(fn)] {
    const auto impl = weak.lock();
    if (!impl) return;
    if (const Use use(*impl); use) fn();
  });
}

// ---- root

void TreeStore::Impl::on_up(const wire::Welcome& welcome, bool same_instance) noexcept {
  const Use use(*this);
  if (!use) return;
  if (same_instance) {
    hurry_all();  // notes may have been lost
    return;
  }
  bool open_now = false;
  {
    base::MutexLock lock(mu);
    ++generation;
    instance = welcome.instance;
    root_valid = false;
    open_now = root_asked && !root_opening;  // else the call under way comes to the new agent, or again
    root_opening = root_opening || open_now;
  }
  // What the mirror has is of another epoch: nothing of it is shown before it was looked at again.
  store.write([](Mirror& mirror, Changes& changes) {
    mirror.distrust(Mirror::kRoot, true, true, changes);
    mirror.forget_versions();
    if (changes.empty()) return;
    changes.assign(1, {Change::Kind::kAll, kNoNode, kNoNode, {}});
  });
  if (open_now) open(nullptr, Clock::now() + kCallDeadline);
}

void TreeStore::Impl::open(const CompletionPtr& opener, Deadline deadline) {
  wire::RootOpen ask;
  std::uint64_t now = 0;
  {
    base::MutexLock lock(mu);
    ask.path = asked_root;
    now = generation;
  }
  unary(wire::Method::kRootOpen, wire::encode(ask), deadline,
        [this, opener, deadline, now](int error, wire::ByteView payload) {
          opened(opener, deadline, now, error, payload);
        });
}

void TreeStore::Impl::opened(const CompletionPtr& opener, Deadline deadline, std::uint64_t for_generation,
                             int error, wire::ByteView payload) {
  const auto reply = error == 0 ? wire::decode<wire::RootReply>(payload) : std::nullopt;
  if (error == 0 && (!reply || !reply->path.starts_with('/'))) error = EPROTO;
  if (error == 0 && !S_ISDIR(reply->attr.mode)) error = ENOTDIR;
  bool outdated = false, again = false, reopened = false;
  std::vector<std::function<void(std::uint32_t)>> waiting;
  {
    base::MutexLock lock(mu);
    outdated = generation != for_generation && Clock::now() < deadline;
  }
  if (error == 0 && !outdated) {
    store.write([&](Mirror& mirror, Changes& changes) { mirror.set_root(reply->attr, changes); });
  }
  {
    base::MutexLock lock(mu);
    outdated = outdated || (generation != for_generation && Clock::now() < deadline);
    again = error != 0 && root_was_open;
    root_opening = outdated || again;
    if (error == 0 && !outdated) {
      root_number = reply->root;
      root_canonical = reply->path;
      root_valid = true;
      reopened = std::exchange(root_was_open, true);
      waiting.swap(waiting_for_root);
    }
  }
  if (outdated) {  // an answer of the agent before
    open(opener, deadline);
    return;
  }
  if (opener) finish(opener, error);
  if (again) {
    log.warn("event=root_not_reopened errno=" + std::to_string(error));
    later(kReopenPause, [this] { open(nullptr, Clock::now() + kCallDeadline); });
  }
  if (error != 0) return;
  if (reopened) rescan({});
  for (const auto& fn : waiting) fn(reply->root);
}

// Runs fn with the root's number, at once or when it is open. False: too many wait already.
bool TreeStore::Impl::with_root(std::function<void(std::uint32_t)> fn) {
  std::uint32_t number = 0;
  {
    base::MutexLock lock(mu);
    if (!root_valid) {
      if (waiting_for_root.size() >= kMaxWaitingForRoot) return false;
      waiting_for_root.push_back(std::move(fn));
      return true;
    }
    number = root_number;
  }
  fn(number);
  return true;
}

// ---- the public face

TreeStore::TreeStore(api::AgentLink& link, base::Timers& timers, base::Logger& log)
    : impl_(std::make_shared<Impl>(*this, link, timers, log)) {
  write([impl = impl_.get()](Mirror& mirror, Changes&) {
    mirror.on_emptied([impl](const wire::NodeId& dir) { impl->told_listing(dir); });
  });
  link.add_observer(impl_.get());
}

TreeStore::~TreeStore() { impl_->close(); }

void TreeStore::open_root(std::string path, Deadline deadline, Done done) {
  const auto opener = impl_->completion(std::move(done), deadline);
  {
    base::MutexLock lock(impl_->mu);
    impl_->asked_root = std::move(path);
    impl_->root_asked = true;
    impl_->root_opening = true;
  }
  impl_->open(opener, deadline);
}

std::uint32_t TreeStore::root() const {
  base::MutexLock lock(impl_->mu);
  return impl_->root_number;
}

std::string TreeStore::root_path() const {
  base::MutexLock lock(impl_->mu);
  return impl_->root_canonical;
}

void TreeStore::load(const std::string& path, Deadline deadline, Done known, Done done) {
  const auto known_one = impl_->completion(std::move(known), deadline);
  const auto done_one = impl_->completion(std::move(done), deadline);
  if (wire::valid_path(path)) {
    impl_->load(path, known_one, done_one);
    return;
  }
  impl_->finish_soon(known_one, EINVAL);
  impl_->finish_soon(done_one, EINVAL);
}

void TreeStore::want(NodeIndex dir, Deadline deadline, Done done) {
  const auto answer = write([&](Mirror& mirror, Changes&) -> int {
    if (!mirror.alive(dir)) return ENOENT;
    if (!S_ISDIR(mirror.attr(dir).mode)) return ENOTDIR;
    if (mirror.listing(dir) == Listing::kComplete) return 0;
    if (mirror.listing(dir) == Listing::kFailed) mirror.set_listing(dir, Listing::kUnknown);
    mirror.pin(dir);
    return -1;
  });
  if (answer >= 0) {
    impl_->finish_soon(impl_->completion(std::move(done), deadline), answer);
    return;
  }
  auto unpinning = [weak = std::weak_ptr(impl_), dir, done = std::move(done)](int error) {
    if (const auto impl = weak.lock()) {
      if (const Impl::Use use(*impl); use) {
        impl->store.write([&](Mirror& mirror, Changes&) { mirror.unpin(dir); });
      }
    }
    if (done) done(error);
  };
  const auto one = impl_->completion(std::move(unpinning), deadline);
  {
    base::MutexLock lock(impl_->mu);
    auto& waiters = impl_->dir_waits[dir].waiters;
    std::erase_if(waiters, [](const CompletionPtr& c) { return c->ran(); });
    waiters.push_back(one);
  }
  impl_->ask(dir);
}

void TreeStore::rescan(Deadline deadline, Done done) {
  impl_->rescan({impl_->completion(std::move(done), deadline)});
}

void TreeStore::set_rescan_stall(std::chrono::milliseconds stall) { impl_->rescan_stall = stall; }

void TreeStore::begin_operation(NodeIndex node) {
  base::MutexLock lock(impl_->ops_mu);
  auto& operation = impl_->operations[node];
  ++operation.under_way;
  operation.touched = ++impl_->op_epoch;
}

void TreeStore::end_operation(NodeIndex node) {
  base::MutexLock lock(impl_->ops_mu);
  const auto found = impl_->operations.find(node);
  if (found == impl_->operations.end()) return;
  auto& operation = found->second;
  if (operation.under_way > 0) --operation.under_way;
  operation.touched = ++impl_->op_epoch;
  if (operation.idle() && impl_->running_walks.empty()) impl_->operations.erase(found);
}

void TreeStore::begin_operation(NodeIndex dir, const wire::NodeId& id, std::string_view name) {
  const auto key = impl_->told_key(id, name);
  base::MutexLock lock(impl_->ops_mu);
  auto& operation = impl_->operations[dir];
  ++operation.names_under_way;
  operation.names_touched = ++impl_->op_epoch;
  ++impl_->names_changing[key].operations;
}

bool TreeStore::end_operation(NodeIndex dir, const wire::NodeId& id, std::string_view name, bool failed) {
  const auto key = impl_->told_key(id, name);
  base::MutexLock lock(impl_->ops_mu);
  bool passed_over = false;
  if (const auto one = impl_->names_changing.find(key); one != impl_->names_changing.end()) {
    passed_over = one->second.passed_over;
    if (--one->second.operations == 0) impl_->names_changing.erase(one);
  }
  if (!failed && !impl_->running_walks.empty()) impl_->told_key_locked(key);
  const auto found = impl_->operations.find(dir);
  if (found == impl_->operations.end()) return passed_over;
  auto& operation = found->second;
  if (operation.names_under_way > 0) --operation.names_under_way;
  operation.names_touched = ++impl_->op_epoch;
  if (operation.idle() && impl_->running_walks.empty()) impl_->operations.erase(found);
  return passed_over;
}

// ---- telling

void TreeStore::queue(Changes&& changes, ChangeListener* except) {
  if (impl_->may_shrink(mirror_) && !impl_->shrinking.exchange(true)) impl_->shrink_wanted = true;
  if (impl_->by_directory && mirror_.name_count() > impl_->budget && !impl_->asking_back.exchange(true)) {
    impl_->ask_back_wanted = true;
  }
  if (changes.empty()) return;
  base::MutexLock lock(impl_->tell_mu);
  impl_->to_tell.push_back({std::move(changes), except});
  ++impl_->queued;
}

void TreeStore::tell() {
  auto& impl = *impl_;
  if (impl.shrink_wanted.exchange(false)) impl.shrink_soon(0ms);
  if (impl.ask_back_wanted.exchange(false)) impl.ask_back_soon(Impl::kAskAgainPause);
  {
    base::MutexLock lock(impl.tell_mu);
    if (impl.telling || impl.to_tell.empty()) return;
    impl.telling = true;
    impl.teller = std::this_thread::get_id();
  }
  while (true) {
    Impl::Told next;
    std::vector<ChangeListener*> to;
    {
      base::MutexLock lock(impl.tell_mu);
      if (impl.to_tell.empty()) {
        impl.telling = false;
        return;
      }
      next = std::move(impl.to_tell.front());
      impl.to_tell.pop_front();
      to = impl.listeners;
    }
    for (auto* listener : to) {
      if (listener == next.except) continue;
      {
        base::MutexLock lock(impl.tell_mu);
        if (std::find(impl.listeners.begin(), impl.listeners.end(), listener) == impl.listeners.end())
          continue;
        impl.told_now = listener;
      }
      listener->on_changes(next.changes);
      base::MutexLock lock(impl.tell_mu);
      impl.told_now = nullptr;
      impl.told.notify_all();
    }
    impl.waited_may_be_gone(next.changes);
    std::vector<CompletionPtr> reached;
    {
      base::MutexLock lock(impl.tell_mu);
      const auto until = ++impl.told_until;
      std::erase_if(impl.tell_waiters, [&](const auto& waiter) {
        if (waiter.first > until) return false;
        reached.push_back(waiter.second);
        return true;
      });
    }
    for (const auto& one : reached) impl.finish_soon(one, 0);
  }
}

void TreeStore::add_listener(ChangeListener* listener) {
  base::MutexLock lock(impl_->tell_mu);
  impl_->listeners.push_back(listener);
}

void TreeStore::remove_listener(ChangeListener* listener) {
  base::MutexLock lock(impl_->tell_mu);
  std::erase(impl_->listeners, listener);
  while (impl_->told_now == listener && impl_->teller != std::this_thread::get_id()) {
    impl_->told.wait_until(impl_->tell_mu, std::chrono::steady_clock::now() + 1h);
  }
}

}  // namespace nearbox::sync
