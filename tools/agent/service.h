// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/channel/mux_server.h"
#include "tools/agent/passwd.h"
#include "tools/agent/session.h"

namespace nearbox::agent {

// Takes the calls and notes of one connection and hands them to its session's workers.
//
// Threads: as CallHandler; nothing here blocks.
// Errors:  calls that do not decode end with EPROTO, unknown methods with ENOSYS; notes that do not
//          decode are dropped and logged: without an answer to give there is nothing else to do.
class Service final : public channel::CallHandler {
 public:
  Service(SessionPtr session, const Identity& who, base::Logger& log)
      : session_(std::move(session)), who_(who), log_(log) {}

  void on_call(wire::Method method, wire::ByteView payload, channel::ResponderPtr responder) override;
  void on_note(wire::Method method, wire::ByteView payload) override;
  void on_cancel(std::uint32_t /*call_id*/) override {
    session_->events.wake();
  }  // a pump whose call it was ends

 private:
  bool file_call(wire::Method method, wire::ByteView payload, const channel::ResponderPtr& responder);
  bool push_call(wire::Method method, wire::ByteView payload, const channel::ResponderPtr& responder);
  bool process_call(wire::Method method, wire::ByteView payload, const channel::ResponderPtr& responder);
  bool note(wire::Method method, wire::ByteView payload);

  const SessionPtr session_;
  const Identity& who_;
  base::Logger& log_;
};

}  // namespace nearbox::agent
