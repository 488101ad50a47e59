// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/notifier.h"

#include <algorithm>
#include <chrono>
#include <pthread.h>
#include <utility>

#include "client/base/fault.h"

namespace nearbox::fs {

using base::MutexLock;

namespace {
using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kAgain{2};  // until an inode that the kernel did not know is told again
constexpr std::chrono::seconds kLook{5};        // how long an idle thread sleeps at most
constexpr std::chrono::milliseconds kStuck{
    50};  // in the kernel without any coming back: they wait for a lock
}  // namespace

Notifier::Notifier(KernelNotify& kernel, Source source) : kernel_(kernel), source_(std::move(source)) {
  MutexLock lock(mu_);
  for (std::size_t i = 0; i < kThreads; ++i) spawn_locked();
}

Notifier::~Notifier() { stop(); }

void Notifier::spawn_locked() {
  threads_.emplace_back([this](const std::stop_token& stop) { run(stop); });
}

void Notifier::attr(Ino ino) { add({ino, {}, 0, false, false, 0}); }
void Notifier::data(Ino ino) { add({ino, {}, 0, true, false, 0}); }
void Notifier::entry(Ino parent, std::string name) { add({parent, std::move(name), 0, false, false, 0}); }
void Notifier::deleted(Ino parent, Ino child, std::string name) {
  add({parent, std::move(name), child, false, true, 0});
}

void Notifier::add(Item item) {
  if (base::fault::active("fs.no_inval")) return;
  const bool full = base::fault::active("fs.inval_queue_full");
  MutexLock lock(mu_);
  if (stopped_) return;
  if (full) {
    everything_locked();
  } else {
    item.ticket = ++last_ticket_;
    enqueue_locked(std::move(item), Bound::kYes, Ticket::kNew);
  }
  wake_.notify_one();
}

void Notifier::everything_locked() {
  if (std::exchange(everything_, true)) return;
  everything_ticket_ = ++last_ticket_;
  outstanding_.insert(everything_ticket_);
}

void Notifier::done_locked(std::uint64_t ticket) {
  if (const auto it = outstanding_.find(ticket); it != outstanding_.end()) outstanding_.erase(it);
  quiet_.notify_all();
}

void Notifier::enqueue_locked(Item item, Bound bound, Ticket ticket) {
  const Ino ino = item.ino;
  const auto found = groups_.find(ino);
  if (found != groups_.end()) {
    const auto it = found->second.items.find(item.name);
    if (it != found->second.items.end()) {
      it->second.data |= item.data;
      it->second.deleted = item.deleted;
      it->second.child = item.child;
      if (ticket == Ticket::kNew) outstanding_.insert(item.ticket);
      const auto [older, newer] = std::minmax(it->second.ticket, item.ticket);
      const auto covered = newer;  // by the other one, which goes out after both
      it->second.ticket = older;
      done_locked(covered);
      return;
    }
  }
  if (bound == Bound::kYes && count_ + aside_count_ >= kMaxQueued) {
    if (ticket == Ticket::kHeld) done_locked(item.ticket);
    everything_locked();
    return;
  }
  if (ticket == Ticket::kNew) outstanding_.insert(item.ticket);
  Group& group = groups_[ino];
  if (group.items.empty() && !group.sending) ready_.push_back(ino);
  group.order.push_back(item.name);
  auto name = item.name;
  group.items.emplace(std::move(name), std::move(item));
  ++count_;
}

void Notifier::everything() {
  MutexLock lock(mu_);
  if (stopped_) return;
  everything_locked();
  wake_.notify_one();
}

void Notifier::let_go(KernelNotify::Unneeded one) {
  if (base::fault::active("fs.no_let_go")) return;
  MutexLock lock(mu_);
  if (stopped_ || unneeded_.size() >= kMaxUnneeded) return;
  unneeded_.push_back(std::move(one));
  wake_.notify_one();
}

// One thread at a time, and never the last one outside of the kernel, which may hold it: the others are there
// for what cannot wait. The next that comes back goes on with it.
bool Notifier::may_let_go_locked() const {
  return !stopped_ && !letting_go_ && !unneeded_.empty() && sending_ + 1 < threads_.size();
}

bool Notifier::step_unneeded() {
  std::vector<KernelNotify::Unneeded> some;
  {
    MutexLock lock(mu_);
    if (!may_let_go_locked()) return false;
    const auto count = std::min(unneeded_.size(), kUnneededAtOnce);
    const auto end = unneeded_.begin() + static_cast<std::ptrdiff_t>(count);
    some.assign(std::make_move_iterator(unneeded_.begin()), std::make_move_iterator(end));
    unneeded_.erase(unneeded_.begin(), end);
    letting_go_ = true;
    ++sending_;
  }
  std::erase_if(some, [&](const auto& one) { return source_.busy(one.ino) || source_.busy(one.parent); });
  if (!some.empty()) kernel_.let_go(some);
  MutexLock lock(mu_);
  letting_go_ = false;
  --sending_;
  ++progress_;
  return true;
}

void Notifier::idle(Ino ino) {
  MutexLock lock(mu_);
  const auto it = aside_.find(ino);
  if (it == aside_.end()) return;
  auto items = std::move(it->second);
  aside_.erase(it);
  aside_count_ -= items.size();
  for (auto& item : items) enqueue_locked(std::move(item), Bound::kNo, Ticket::kHeld);
  wake_.notify_one();
}

void Notifier::run(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "fuse-notify");
  while (!stop.stop_requested()) {
    if (step() || step_unneeded()) continue;
    MutexLock lock(mu_);
    if (!ready_.empty() || everything_ || stopped_ || may_let_go_locked()) continue;
    wake_.wait_until(mu_, again_.empty() ? Clock::now() + kLook : again_.begin()->first);
  }
}

// Sends one notification; false when there is none.
bool Notifier::step() {
  Item item;
  bool all = false;
  std::uint64_t ticket = 0;
  {
    MutexLock lock(mu_);
    if (stopped_) return false;
    take_again_locked();
    all = std::exchange(everything_, false);
    if (all) {
      ++sending_;
      ticket = everything_ticket_;
    } else {
      keep_watch_locked();
      if (!take_locked(item)) return false;
    }
  }
  bool told = true;
  if (all) {
    queue_everything(ticket);
  } else {
    ticket = item.ticket;
    told = send(item);
  }
  MutexLock lock(mu_);
  if (all) {
    --sending_;
  } else {
    sent_locked(item.ino);
  }
  if (told) done_locked(ticket);
  return true;
}

bool Notifier::take_locked(Item& item) {
  if (stopped_ || ready_.empty()) return false;
  Group& group = groups_.at(ready_.front());
  ready_.pop_front();
  const auto it = group.items.find(group.order.front());
  group.order.pop_front();
  item = std::move(it->second);
  group.items.erase(it);
  group.sending = true;
  --count_;
  ++sending_;
  // Somebody else has an eye on what is left, and on what is to be told again, while this one is in the
  // kernel.
  if (!ready_.empty() || !again_.empty()) wake_.notify_one();
  return true;
}

void Notifier::sent_locked(Ino ino) {
  --sending_;
  ++progress_;
  const auto it = groups_.find(ino);
  if (it == groups_.end()) return;  // stopped
  it->second.sending = false;
  if (it->second.items.empty()) {
    groups_.erase(it);
  } else {
    ready_.push_back(ino);
  }
}

// The last thread outside of the kernel goes in only when the others are stuck, and leaves another one in its
// place while there may be more.
void Notifier::keep_watch_locked() {
  while (!stopped_ && !ready_.empty() && sending_ + 1 >= threads_.size() && threads_.size() < kMaxThreads) {
    const auto before = progress_;
    watch_.wait_until(mu_, Clock::now() + kStuck);
    if (progress_ == before && !stopped_ && sending_ + 1 >= threads_.size()) spawn_locked();
  }
}

// False: left aside.
bool Notifier::send(const Item& item) {
  // Attributes alone and a directory's listing never wait; the rest does for what a parked request holds.
  Ino held = 0;
  if (source_.busy(item.ino)) held = item.ino;
  if (held == 0 && item.child != 0 && source_.busy(item.child)) held = item.child;
  const bool waits = !item.name.empty() || item.data;
  if (held == 0 || !waits) sent_.fetch_add(1, std::memory_order_relaxed);
  if (held != 0 && waits) {
    if (item.name.empty()) (void)kernel_.inode(item.ino, false);
    MutexLock lock(mu_);
    if (stopped_) return false;
    aside_[held].push_back(item);
    ++aside_count_;
  } else if (item.name.empty()) {
    return tell_inode(item);
  } else if (item.deleted && item.child != 0) {
    kernel_.deleted(item.ino, item.child, item.name);
  } else {
    kernel_.entry(item.ino, item.name);
  }
  // The request may have been answered between the look and the note of it.
  if (held == 0 || !waits) return true;
  if (!source_.busy(held)) idle(held);
  return false;
}

// False: to be told again. The kernel takes an answer in the thread that asked, after the daemon wrote it,
// and compares its age only with what it was told of inodes it has (linux v6.12 fs/fuse/inode.c, attr_version
// in fuse_reverse_inval_inode() and fuse_iget()).
bool Notifier::tell_inode(const Item& item) {
  if (kernel_.inode(item.ino, item.data) || !source_.referenced || !source_.referenced(item.ino)) return true;
  const auto now = Clock::now();
  Item later = item;
  if (later.unknown_since == Clock::time_point{}) later.unknown_since = now;
  const bool long_since = now - later.unknown_since > kOnItsWay;
  MutexLock lock(mu_);
  if (stopped_) return false;
  again_.emplace(now + (long_since ? kOnItsWay : kAgain), std::move(later));
  ++aside_count_;
  return long_since;  // nobody waits for it any more
}

void Notifier::take_again_locked() {
  const auto now = Clock::now();
  while (!again_.empty() && again_.begin()->first <= now) {
    Item item = std::move(again_.begin()->second);
    again_.erase(again_.begin());
    --aside_count_;
    const bool counted = outstanding_.contains(item.ticket);
    if (!counted) item.ticket = ++last_ticket_;
    enqueue_locked(std::move(item), Bound::kNo, counted ? Ticket::kHeld : Ticket::kNew);
  }
}

void Notifier::queue_everything(std::uint64_t ticket) {
  const bool epoch = kernel_.epoch();
  auto inos = source_.known();
  auto names = epoch ? std::vector<Name>() : source_.names();
  MutexLock lock(mu_);
  if (stopped_) return;
  for (auto& [parent, name] : names)
    enqueue_locked({parent, std::move(name), 0, false, false, ticket}, Bound::kNo, Ticket::kNew);
  for (const Ino ino : inos) enqueue_locked({ino, {}, 0, true, false, ticket}, Bound::kNo, Ticket::kNew);
  wake_.notify_all();
}

bool Notifier::wait_idle(Clock::time_point deadline) {
  MutexLock lock(mu_);
  const auto ticket = last_ticket_;
  while (!reached_locked(ticket) && !stopped_) {
    if (!quiet_.wait_until(mu_, deadline)) return reached_locked(ticket);
  }
  return true;
}

void Notifier::stop() {
  std::vector<std::jthread> threads;
  {
    MutexLock lock(mu_);
    if (stopped_) return;
    stopped_ = true;
    groups_.clear();
    ready_.clear();
    aside_.clear();
    again_.clear();
    unneeded_.clear();
    count_ = aside_count_ = 0;
    outstanding_.clear();
    wake_.notify_all();
    quiet_.notify_all();
    watch_.notify_all();
    threads.swap(threads_);
  }
  for (auto& thread : threads) thread.request_stop();
  threads.clear();  // joins
}

}  // namespace nearbox::fs
