// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/up_watch.h"

namespace nearbox::daemon {

void UpWatch::on_up(const wire::Welcome&, bool) noexcept {
  base::MutexLock lock(mu_);
  up_ = true;
  ever_up_ = true;
  final_ = false;
  error_.reset();
  cv_.notify_all();
}

void UpWatch::on_down(const base::Error& why) noexcept {
  base::MutexLock lock(mu_);
  up_ = false;
  if (ever_up_) error_ = why;  // before, what dialling said is the better answer
}

void UpWatch::dial_failed(const base::Error& error, bool final) {
  base::MutexLock lock(mu_);
  error_ = error;
  final_ = final;
  ++failures_;
  cv_.notify_all();
}

void UpWatch::handshake_failed(const base::Error& error, bool final) {
  base::MutexLock lock(mu_);
  error_ = error;
  if (!final) return;
  final_ = true;
  ++failures_;
  cv_.notify_all();
}

void UpWatch::close() {
  base::MutexLock lock(mu_);
  closed_ = true;
  cv_.notify_all();
}

base::Result<void> UpWatch::wait(Deadline deadline, const std::function<void()>& redial) {
  std::uint64_t failures = 0;
  {
    base::MutexLock lock(mu_);
    if (up_) return {};
    failures = failures_;
  }
  redial();
  base::MutexLock lock(mu_);
  while (!up_) {
    if (closed_) return base::errno_error(ESHUTDOWN, "the daemon is ending");
    if (failures_ > failures && error_ && (final_ || !ever_up_)) return *error_;
    if (!cv_.wait_until(mu_, deadline) && !up_) {
      if (error_) return *error_;
      return base::errno_error(ETIMEDOUT, "the sandbox did not answer");
    }
  }
  return {};
}

}  // namespace nearbox::daemon
