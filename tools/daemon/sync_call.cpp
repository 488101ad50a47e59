// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/sync_call.h"

#include "client/base/mutex.h"

namespace nearbox::daemon {
namespace {

struct Waiting {
  base::Mutex mu;  // rank: leaf
  base::CondVar cv;
  bool done GUARDED_BY(mu) = false;
  int error GUARDED_BY(mu) = 0;
  wire::Bytes payload GUARDED_BY(mu);
};

class Sink : public api::CallSink {
 public:
  Sink(std::shared_ptr<Waiting> waiting, wire::Bytes again, Resend resend)
      : waiting_(std::move(waiting)), again_(std::move(again)), resend_(resend) {}

  void on_end(int error, wire::ByteView payload) noexcept override {
    base::MutexLock lock(waiting_->mu);
    waiting_->done = true;
    waiting_->error = error;
    waiting_->payload.assign(payload.begin(), payload.end());
    waiting_->cv.notify_all();
  }
  std::optional<wire::Bytes> on_lost() noexcept override {
    if (resend_ == Resend::kNo) return std::nullopt;
    return again_;
  }

 private:
  std::shared_ptr<Waiting> waiting_;
  wire::Bytes again_;
  Resend resend_;
};

}  // namespace

base::Result<wire::Bytes> sync_call(api::AgentLink& link, wire::Method method, wire::Bytes payload,
                                    std::chrono::steady_clock::time_point deadline, Resend resend) {
  auto waiting = std::make_shared<Waiting>();
  auto again = resend == Resend::kYes ? payload : wire::Bytes{};
  api::CallOptions options;
  options.deadline = deadline;
  link.call(method, std::move(payload), std::make_unique<Sink>(waiting, std::move(again), resend), options);
  // The link ends every call at its deadline; the second more covers its own scheduling.
  const auto limit = deadline + std::chrono::seconds(1);
  base::MutexLock lock(waiting->mu);
  while (!waiting->done) {
    if (!waiting->cv.wait_until(waiting->mu, limit) && !waiting->done) {
      return base::errno_error(ETIMEDOUT, "the agent did not answer");
    }
  }
  if (waiting->error != 0) {
    // Errors of the agent may carry a text.
    std::string text(wire::as_text(waiting->payload).substr(0, wire::kMaxText));
    return base::errno_error(waiting->error, std::move(text));
  }
  return std::move(waiting->payload);
}

}  // namespace nearbox::daemon
