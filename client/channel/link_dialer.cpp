// SPDX-License-Identifier: Apache-2.0
#include "client/channel/link_dialer.h"

#include <algorithm>
#include <pthread.h>
#include <sys/random.h>

#include "client/channel/handshake.h"

namespace nearbox::channel {
namespace {

using Clock = std::chrono::steady_clock;
constexpr unsigned kMaxDoublings = 16;

const char* name_of(wire::Role role) { return role == wire::Role::kControl ? "control" : "bulk"; }

}  // namespace

std::uint64_t random_u64() {
  std::uint64_t value = 0;
  // Below 256 bytes getrandom(2) gives all or fails; it fails only before the kernel is seeded and
  // interrupted.
  while (::getrandom(&value, sizeof value, 0) != sizeof value) {
  }
  return value;
}

LinkDialer::LinkDialer(const LinkConfig& config, Callbacks callbacks, base::Logger& log)
    : config_(config),
      callbacks_(std::move(callbacks)),
      log_(log),
      random_(static_cast<std::minstd_rand::result_type>(random_u64())) {}

void LinkDialer::start() {
  thread_ = std::jthread([this] { run(); });
}

void LinkDialer::need(wire::Role role, bool fresh) {
  base::MutexLock lock(mu_);
  auto& w = want(role);
  w.needed = true;
  if (fresh) {
    w.attempts = 0;
    w.not_before = {};
  } else {
    pause_locked(w);
  }
  wake_.notify_all();
}

void LinkDialer::redial() {
  base::MutexLock lock(mu_);
  given_up_ = false;
  ++redials_;
  for (auto& w : wants_) w.attempts = 0, w.not_before = {};
  wake_.notify_all();
}

void LinkDialer::interrupt() {
  {
    base::MutexLock lock(mu_);
    if (stopping_) return;
    stopping_ = true;
    if (shaking_ != nullptr) shaking_->shutdown();
    wake_.notify_all();
  }
  if (thread_.joinable() && config_.abort_dial) config_.abort_dial();
}

void LinkDialer::stop() {
  interrupt();
  {
    base::MutexLock lock(mu_);
    may_end_ = true;
    wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void LinkDialer::pause_locked(Want& w) {
  const auto doublings = std::min(w.attempts++, kMaxDoublings);
  const auto full = std::min(config_.backoff_min * (1u << doublings), config_.backoff_max);
  std::uniform_int_distribution<std::int64_t> jitter(full.count() / 2, full.count());
  w.not_before = Clock::now() + std::chrono::milliseconds(jitter(random_));
}

// Waits until a connection is due. False: stop.
bool LinkDialer::next_role(wire::Role& role) {
  base::MutexLock lock(mu_);
  while (!stopping_) {
    const auto now = Clock::now();
    auto until = now + base::kIdleWait;
    for (const auto r : {wire::Role::kControl, wire::Role::kBulk}) {
      const auto& w = want(r);
      if (!w.needed || given_up_) continue;
      if (w.not_before <= now) {
        role = r;
        return true;
      }
      until = std::min(until, w.not_before);
      if (r == wire::Role::kControl) break;  // it decides whose agent the bulk connection goes to
    }
    wake_.wait_until(mu_, until);
  }
  return false;
}

void LinkDialer::run() noexcept {
  pthread_setname_np(pthread_self(), "link-dial");
  wire::Role role{};
  while (next_role(role)) attempt(role);
  base::MutexLock lock(mu_);
  while (!may_end_) wake_.wait_until(mu_, Clock::now() + base::kIdleWait);
}

base::Result<wire::Welcome> LinkDialer::handshake(Carrier& carrier, wire::Role role, const wire::Token& token,
                                                  Deadline deadline) {
  {
    base::MutexLock lock(mu_);
    if (stopping_) return base::errno_error(ESHUTDOWN);
    shaking_ = &carrier;
  }
  wire::Hello hello;
  hello.role = role;
  hello.token = token;
  hello.session = callbacks_.session();
  hello.build = config_.build;
  auto result = [&]() -> base::Result<wire::Welcome> {
    if (auto sent = send_hello(carrier, hello, deadline); !sent) {
      return std::move(sent).error().during("hello");
    }
    return read_welcome(carrier, deadline);
  }();
  base::MutexLock lock(mu_);
  shaking_ = nullptr;
  return result;
}

void LinkDialer::attempt(wire::Role role) {
  std::uint64_t redials = 0;
  {
    base::MutexLock lock(mu_);
    redials = redials_;
  }
  const auto deadline = Clock::now() + config_.connect_timeout;
  auto dialled = config_.dial(role, deadline);
  std::optional<base::Error> error;
  if (!dialled) {
    error = std::move(dialled).error().during("connect");
  } else {
    auto welcome = handshake(*dialled->carrier, role, dialled->token, deadline);
    if (welcome) {
      {
        base::MutexLock lock(mu_);
        want(role).needed = false;
      }
      callbacks_.connected(role, std::move(dialled->carrier), *welcome);
      return;
    }
    error = std::move(welcome).error();
  }
  log_.info(std::string("event=connect_failed connection=") + name_of(role) + " why=\"" + error->message() +
            "\"");
  const bool give_up = callbacks_.failed(role, *error);
  base::MutexLock lock(mu_);
  if (redials != redials_) return;  // asked for while this attempt ran: the next one begins at once
  if (give_up) given_up_ = true;
  pause_locked(want(role));
}

}  // namespace nearbox::channel
