// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "client/api/agent_link.h"

namespace nearbox::fs {

// A call without a stream: hands its end to one function.
class EndSink final : public api::CallSink {
 public:
  using Fn = std::function<void(int error, wire::ByteView payload)>;
  explicit EndSink(Fn fn, wire::Bytes again = {}) : fn_(std::move(fn)), again_(std::move(again)) {}
  void on_end(int error, wire::ByteView payload) noexcept override { fn_(error, payload); }
  // Calls made with `again` only look, so they may run twice.
  std::optional<wire::Bytes> on_lost() noexcept override {
    if (again_.empty()) return std::nullopt;
    return again_;
  }

 private:
  Fn fn_;
  wire::Bytes again_;
};

// Starts a repeatable call whose answer is one message R; done(error, reply). EPROTO: it did not decode.
template <class R, class M>
void ask(api::AgentLink& link, wire::Method method, const M& message,
         std::chrono::steady_clock::time_point deadline, std::function<void(int, R&&)> done) {
  auto payload = wire::encode(message);
  auto sink = std::make_unique<EndSink>(
      [done = std::move(done)](int error, wire::ByteView bytes) {
        if (error != 0) return done(error, R{});
        auto reply = wire::decode<R>(bytes);
        reply ? done(0, std::move(*reply)) : done(EPROTO, R{});
      },
      payload);
  api::CallOptions options;
  options.deadline = deadline;
  link.call(method, std::move(payload), std::move(sink), options);
}

}  // namespace nearbox::fs
