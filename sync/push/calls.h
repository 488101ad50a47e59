// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>

#include "client/api/agent_link.h"
#include "client/base/mutex.h"

namespace nearbox::push {

inline constexpr std::size_t kWindowBytes = 8 * 1024 * 1024;  // of calls that are not answered
inline constexpr std::size_t kWindowCalls = 16;
inline constexpr std::chrono::seconds kCallDeadline{300};    // a link that is down for longer ends the push
inline constexpr std::chrono::milliseconds kStopGrace{800};  // for what is under way when a push is stopped

// The calls of one push: as many under way as fill the link, repeated when a connection breaks, answered on
// the thread that asks for answers.
//
// Owns:    what the calls share with the link's threads. The destructor cancels what is under way; nothing of
//          it is called afterwards.
// Threads: send() and wait_all() from any; answers run inside step() and sync(), on their caller's.
class Calls {
 public:
  using Clock = std::chrono::steady_clock;
  // `error`: errno of the call. ECONNRESET: the agent is another one now, nobody knows whether it was done.
  using Answer = std::function<void(int error, wire::Bytes payload)>;

  explicit Calls(api::AgentLink& link);
  ~Calls();
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  // Waits for room, sends; false: stopped.
  bool send(wire::Method method, wire::Bytes payload, Answer answer);
  // Runs the answers that are there; waits up to `wait` for one.
  void step(std::chrono::milliseconds wait);
  // Runs it as an answer.
  void post(std::function<void()> what);
  // No more calls; those that wait for room come back.
  void stop();
  // Sends and waits, for threads that do nothing else. `chunk` gets the answer's stream, on a link thread.
  struct Reply {
    int error = 0;
    wire::Bytes payload;
  };
  using Chunk = std::function<void(wire::ByteView)>;
  Reply sync(wire::Method method, wire::Bytes payload, Chunk chunk = {});

  std::size_t under_way() const;
  bool stopped() const;
  std::uint64_t made() const;
  std::uint64_t bytes_out() const;
  std::uint64_t bytes_in() const;
  // Bytes a second while the window was full: what the link can carry. 0: it never was.
  double rate() const;

 private:
  struct Shared;
  class Sink;
  std::shared_ptr<Shared> shared_;
  api::AgentLink& link_;
};

}  // namespace nearbox::push
