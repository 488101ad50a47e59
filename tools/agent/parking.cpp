// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/parking.h"

#include "client/base/fault.h"

namespace nearbox::agent {
namespace {
constexpr std::chrono::milliseconds kLook{20};
}

bool Parking::park_if_held(Item& item) {
  if (!base::fault::active(item.point, item.subject)) return false;
  base::MutexLock lock(mu_);
  if (closed_) return false;
  items_.push_back(std::move(item));
  schedule_locked();
  return true;
}

void Parking::schedule_locked() {
  if (scheduled_ || items_.empty()) return;
  scheduled_ = true;
  timers_.after(kLook, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->look();
  });
}

void Parking::look() {
  base::MutexLock running(run_mu_);
  std::vector<Item> ready;
  {
    base::MutexLock lock(mu_);
    scheduled_ = false;
    std::vector<Item> rest;
    for (auto& item : items_) {
      const bool held = base::fault::active(item.point, item.subject) && !item.cancelled();
      (held ? rest : ready).push_back(std::move(item));
    }
    items_ = std::move(rest);
    schedule_locked();
  }
  for (auto& item : ready) item.resume();
}

void Parking::close() {
  base::MutexLock running(run_mu_);
  std::vector<Item> dropped;
  base::MutexLock lock(mu_);
  closed_ = true;
  dropped.swap(items_);
}

std::size_t Parking::size() {
  base::MutexLock lock(mu_);
  return items_.size();
}

}  // namespace nearbox::agent
