// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

#include "client/base/result.h"
#include "client/wire/messages.h"

namespace nearbox::api {

using CallToken = std::uint64_t;  // names a call of one AgentLink for its whole life; never reused

// Receives the answer of one call.
//
// Threads: all methods run on link threads, one at a time for one sink. They must not block and may
//          call the link. The link owns the sink and destroys it after on_end().
class CallSink {
 public:
  virtual ~CallSink() = default;
  // One piece of the answer stream, in order.
  virtual void on_chunk(wire::ByteView bytes) noexcept { (void)bytes; }
  // Exactly once, last. `error` is an errno: 0 fine, ETIMEDOUT the deadline passed, ECANCELED,
  // ECONNRESET the connection was lost and on_lost() gave nothing, ESHUTDOWN the link is closing,
  // or what the agent said.
  virtual void on_end(int error, wire::ByteView payload) noexcept = 0;
  // The connection broke while the call was running. The payload with which it goes on when the
  // link is back (a read its advanced offset, an attach its output position), or nothing to give up.
  // When the agent turns out to be another instance, calls that name things of the old one (roots,
  // processes, nodes) are not sent to it and end with ECONNRESET; kSubscribe names its instance.
  virtual std::optional<wire::Bytes> on_lost() noexcept { return std::nullopt; }
};

enum class Lane : std::uint8_t { kSmall, kBulk };

struct CallOptions {
  std::chrono::steady_clock::time_point deadline;  // the call ends with ETIMEDOUT then, link or no link
  bool no_deadline = false;  // for calls that last as long as what they follow: kSubscribe, kProcAttach
  Lane lane = Lane::kSmall;
  std::uint32_t credit = 1024 * 1024;  // bytes the agent may send ahead
  bool manual_credit = false;  // true: the sink's owner calls grant(); else each chunk is granted again
};

// Watches the link. Called on a link thread, never with a link lock held.
class LinkObserver {
 public:
  virtual ~LinkObserver() = default;
  // `same_instance`: the agent process and our session in it are the ones of before, so operations
  // and processes go on; false at first and after an agent was restarted or a snapshot restored.
  virtual void on_up(const wire::Welcome& welcome, bool same_instance) noexcept = 0;
  virtual void on_down(const base::Error& why) noexcept = 0;
};

struct LinkStatus {
  bool up = false;
  std::chrono::microseconds rtt{0};  // smoothed; 0: not known yet
  double bytes_per_second = 0;       // receive rate seen lately
  std::uint64_t bytes_in = 0, bytes_out = 0;
  std::uint64_t reconnects = 0;
  std::uint64_t calls = 0;  // made so far: questions that are answered, each a round trip at least
  std::string last_error;
};

// A logical connection to an agent that survives the loss of its carriers: it dials again with
// growing, jittered pauses and re-sends what was in flight as each call's sink wishes.
//
// Threads: any thread may call; nothing here blocks on the network.
// Bounds:  kMaxCallsInFlight; a call above it ends with EAGAIN.
class AgentLink {
 public:
  virtual ~AgentLink() = default;
  // Starts a call; while the link is down it waits for it until the deadline.
  virtual CallToken call(wire::Method method, wire::Bytes payload, std::unique_ptr<CallSink> sink,
                         const CallOptions& options) = 0;
  // Ends a call early: on_end(ECANCELED) comes soon, from a link thread, unless it ended already.
  virtual void cancel(CallToken token) = 0;
  // Lets a manual_credit call send `bytes` more.
  virtual void grant(CallToken token, std::uint32_t bytes) = 0;
  // One-way. Dropped while the link is down: senders repeat what matters in on_up(). Notes of one lane
  // arrive in order, or on_down() and on_up() come, as they do when one of the two connections that
  // carried notes is lost while the other lives. The nonce of a kConfirm is made by the link.
  virtual void note(wire::Method method, wire::Bytes payload, Lane lane = Lane::kSmall) = 0;
  // The 32-bit id the call has on the wire now (for kTreeHurry), 0 when it is not on the wire.
  virtual std::uint32_t wire_id(CallToken token) = 0;
  virtual LinkStatus status() const = 0;
  // What the agent says shows that it is not the one we knew, but a copy or an older state of it: takes
  // another session. on_down() comes soon, then on_up() with same_instance false.
  virtual void renew_session() = 0;
  virtual void add_observer(LinkObserver* observer) = 0;     // not owned; told the present state at once
  virtual void remove_observer(LinkObserver* observer) = 0;  // no call is running when it returns
};

}  // namespace nearbox::api
