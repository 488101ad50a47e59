// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/notifier.h"

#include <chrono>
#include <pthread.h>

#include "client/base/fault.h"

namespace nearbox::fs {

using base::MutexLock;

namespace {
constexpr std::chrono::seconds kLook{1};  // how long an idle thread sleeps at most
}

Notifier::Notifier(KernelNotify& kernel, Source source) : kernel_(kernel), source_(std::move(source)) {
  for (int i = 0; i < kThreads; ++i) {
    threads_.emplace_back([this](const std::stop_token& stop) { run(stop); });
  }
}

Notifier::~Notifier() { stop(); }

void Notifier::attr(Ino ino) { add({ino, {}, 0, false, false}); }
void Notifier::data(Ino ino) { add({ino, {}, 0, true, false}); }
void Notifier::entry(Ino parent, std::string name) { add({parent, std::move(name), 0, false, false}); }
void Notifier::deleted(Ino parent, Ino child, std::string name) {
  add({parent, std::move(name), child, false, true});
}

void Notifier::add(Item item) {
  if (base::fault::active("fs.no_inval")) return;
  MutexLock lock(mu_);
  if (stopped_) return;
  enqueue_locked(std::move(item));
  wake_.notify_one();
}

void Notifier::enqueue_locked(Item item) {
  Key key{item.ino, item.name};
  const auto it = items_.find(key);
  if (it != items_.end()) {
    it->second.data |= item.data;
    it->second.deleted = item.deleted;
    it->second.child = item.child;
    return;
  }
  if (items_.size() + aside_count_ >= kMaxQueued && !(item.ino == kRootIno && !item.name.empty())) {
    everything_ = true;
    return;
  }
  order_.push_back(key);
  items_.emplace(std::move(key), std::move(item));
}

void Notifier::everything() {
  MutexLock lock(mu_);
  everything_ = true;
  wake_.notify_one();
}

void Notifier::idle(Ino ino) {
  MutexLock lock(mu_);
  const auto it = aside_.find(ino);
  if (it == aside_.end()) return;
  auto items = std::move(it->second);
  aside_.erase(it);
  aside_count_ -= items.size();
  for (auto& item : items) enqueue_locked(std::move(item));
  wake_.notify_one();
}

void Notifier::run(const std::stop_token& stop) noexcept {
  pthread_setname_np(pthread_self(), "fuse-notify");
  while (!stop.stop_requested()) {
    if (step()) continue;
    MutexLock lock(mu_);
    if (sending_ == 0 && items_.empty() && !everything_) quiet_.notify_all();
    if (items_.empty() && !everything_ && !stopped_) {
      wake_.wait_until(mu_, std::chrono::steady_clock::now() + kLook);
    }
  }
}

// Sends one notification; false when there is none.
bool Notifier::step() {
  Item item;
  bool all = false;
  {
    MutexLock lock(mu_);
    if (stopped_ || (items_.empty() && !everything_)) return false;
    if (everything_) {
      everything_ = false;
      all = true;
    } else {
      const auto node = items_.extract(order_.front());
      order_.pop_front();
      item = std::move(node.mapped());
    }
    ++sending_;
  }
  if (all) {
    send_everything();
  } else {
    send(item);
  }
  MutexLock lock(mu_);
  --sending_;
  return true;
}

void Notifier::send(const Item& item) {
  // Attributes alone and a directory's listing never wait; the rest does for what a parked request holds.
  Ino held = 0;
  if (source_.busy(item.ino)) held = item.ino;
  if (held == 0 && item.child != 0 && source_.busy(item.child)) held = item.child;
  const bool waits = !item.name.empty() || item.data;
  if (held != 0 && waits) {
    if (item.name.empty()) kernel_.inode(item.ino, false);
    MutexLock lock(mu_);
    aside_[held].push_back(item);
    ++aside_count_;
  } else if (item.name.empty()) {
    kernel_.inode(item.ino, item.data);
  } else if (item.deleted && item.child != 0) {
    kernel_.deleted(item.ino, item.child, item.name);
  } else {
    kernel_.entry(item.ino, item.name);
  }
  // The request may have been answered between the look and the note of it.
  if (held != 0 && waits && !source_.busy(held)) idle(held);
}

void Notifier::send_everything() {
  if (!kernel_.epoch()) {
    for (const auto& name : source_.root_names()) add({kRootIno, name, 0, false, false});
  }
  for (const Ino ino : source_.known()) {
    if (source_.busy(ino)) {
      kernel_.inode(ino, false);
      MutexLock lock(mu_);
      aside_[ino].push_back({ino, {}, 0, true, false});
      ++aside_count_;
    } else {
      kernel_.inode(ino, true);
    }
    if (!source_.busy(ino)) idle(ino);
  }
}

bool Notifier::wait_idle(std::chrono::steady_clock::time_point deadline) {
  MutexLock lock(mu_);
  while (!items_.empty() || everything_ || sending_ != 0) {
    if (!quiet_.wait_until(mu_, deadline)) return false;
  }
  return true;
}

void Notifier::stop() {
  {
    MutexLock lock(mu_);
    if (stopped_) return;
    stopped_ = true;
    items_.clear();
    order_.clear();
    wake_.notify_all();
    quiet_.notify_all();
  }
  for (auto& thread : threads_) thread.request_stop();
  threads_.clear();  // joins
}

}  // namespace nearbox::fs
