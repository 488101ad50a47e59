// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/event_log.h"

#include <chrono>
#include <sys/random.h>

namespace nearbox::agent {
// The clock too: a copied machine may go on with the same random numbers for a moment.
std::uint32_t EventLog::fresh_tag() {
  std::uint64_t random = 0;
  (void)::getrandom(&random, sizeof random, GRND_NONBLOCK);
  const auto now = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  const std::uint64_t mixed = (random ^ now) * 0x9e3779b97f4a7c15ULL;
  return static_cast<std::uint32_t>(mixed >> 32);
}

std::uint64_t EventLog::append(wire::EventKind kind, wire::Bytes body) {
  base::MutexLock lock(mu_);
  if (poisoned_) return 0;
  const std::uint64_t seq = first_ + events_.size();
  const std::uint32_t tag = tags_();
  wire::Event event{seq, kind, std::move(body), tag};
  auto encoded = wire::encode(event);
  bytes_ += encoded.size();
  if (bytes_ > max_bytes_) {
    poisoned_ = true;
    events_.clear();
    bytes_ = 0;
    changed_.notify_all();
    return 0;
  }
  events_.push_back({std::move(encoded), tag});
  changed_.notify_all();
  return seq;
}

base::Result<void> EventLog::check(std::uint64_t seq, std::uint32_t tag) {
  base::MutexLock lock(mu_);
  if (seq + 1 < first_ || seq >= first_ + events_.size()) return base::errno_error(ESTALE, "event position");
  const auto own = seq + 1 == first_ ? confirmed_tag_ : events_[seq - first_].tag;
  if (seq != 0 && own != tag) return base::errno_error(ESTALE, "another event has that number here");
  return {};
}

base::Result<void> EventLog::take(std::uint64_t& after, std::size_t max, wire::Bytes& out,
                                  std::chrono::steady_clock::time_point deadline, std::uint64_t wakes) {
  base::MutexLock lock(mu_);
  while (true) {
    if (poisoned_) return base::errno_error(EOVERFLOW, "event log");
    if (after + 1 < first_ || after >= first_ + events_.size()) {
      return base::errno_error(ESTALE, "event position");
    }
    if (after + 1 < first_ + events_.size() || wakes != wakes_) break;
    if (!changed_.wait_until(mu_, deadline)) return {};
  }
  wire::Writer writer(out);
  while (after + 1 < first_ + events_.size() && out.size() < max) {
    const auto& event = events_[after + 1 - first_].encoded;
    writer.num(static_cast<std::uint32_t>(event.size()));
    out.insert(out.end(), event.begin(), event.end());
    ++after;
  }
  return {};
}

void EventLog::confirm(std::uint64_t seq) {
  base::MutexLock lock(mu_);
  while (!events_.empty() && first_ <= seq) {
    bytes_ -= events_.front().encoded.size();
    confirmed_tag_ = events_.front().tag;
    events_.pop_front();
    ++first_;
  }
}

void EventLog::wake() {
  base::MutexLock lock(mu_);
  ++wakes_;
  changed_.notify_all();
}

std::uint64_t EventLog::wakes() {
  base::MutexLock lock(mu_);
  return wakes_;
}

std::uint64_t EventLog::last_seq() {
  base::MutexLock lock(mu_);
  return first_ + events_.size() - 1;
}

std::uint64_t EventLog::confirmed() {
  base::MutexLock lock(mu_);
  return first_ - 1;
}

std::size_t EventLog::room() {
  base::MutexLock lock(mu_);
  return poisoned_ ? 0 : max_bytes_ - bytes_;
}

bool EventLog::poisoned() {
  base::MutexLock lock(mu_);
  return poisoned_;
}

}  // namespace nearbox::agent
