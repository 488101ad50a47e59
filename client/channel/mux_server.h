// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "client/base/log.h"
#include "client/base/result.h"
#include "client/channel/carrier.h"
#include "client/wire/messages.h"

// The agent's end of a connection: frames in, frames out, credits, priorities, heartbeats.
namespace nearbox::channel {

// Answers one call. Copies share it; the call ends with ECANCELED when the last copy goes without
// end() having been called.
//
// Threads: any. send() waits for credit and queue space, so it belongs to a worker of its caller,
//          never to the connection's reader; it gives up when the call is cancelled, its deadline
//          passes or the connection goes.
class Responder {
 public:
  virtual ~Responder() = default;
  // One piece of the answer stream, ≤ kMaxMessage bytes (split into frames as needed). False: the
  // call is over for the client (cancelled, deadline, connection gone): stop working on it.
  virtual bool send(wire::ByteView bytes) = 0;
  // Last. `error` 0 or an errno; the payload as the method says.
  virtual void end(int error, wire::ByteView payload = {}) = 0;
  virtual bool cancelled() const = 0;
  virtual std::uint32_t call_id() const = 0;
};
using ResponderPtr = std::shared_ptr<Responder>;

// Takes what a connection receives. Called on the connection's reader thread: must not block, hands
// work to its own threads. `payload` is valid during the call only.
class CallHandler {
 public:
  virtual ~CallHandler() = default;
  virtual void on_call(wire::Method method, wire::ByteView payload, ResponderPtr responder) = 0;
  virtual void on_note(wire::Method method, wire::ByteView payload) = 0;
  virtual void on_cancel(std::uint32_t call_id) { (void)call_id; }
};

// Reads the client's Hello (EPROTO for garbage, ETIMEDOUT past the deadline).
base::Result<wire::Hello> read_hello(Carrier& carrier, Deadline deadline);
base::Result<void> send_refused(Carrier& carrier, const wire::Refused& refused, Deadline deadline);
base::Result<void> send_welcome(Carrier& carrier, const wire::Welcome& welcome, Deadline deadline);

struct ServeOptions {
  std::chrono::milliseconds ping_after{2000};  // silence before a ping is sent
  std::chrono::milliseconds dead_after{8000};  // silence after which the peer is taken for dead
};

// Serves one connection until the peer closes, breaks the protocol, falls silent or stop is asked
// for by carrier.shutdown(). Runs the reader in the calling thread and a writer thread of its own;
// all calls are cancelled when it returns, and no handler method runs afterwards.
base::Result<void> serve_connection(Carrier& carrier, CallHandler& handler, const ServeOptions& options,
                                    base::Logger& log);

}  // namespace nearbox::channel
