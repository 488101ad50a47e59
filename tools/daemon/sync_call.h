// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

#include "client/api/agent_link.h"
#include "client/base/result.h"

namespace nearbox::daemon {

// Makes a unary call and waits for its end: for the daemon's own client threads, never for a link
// thread or a FUSE worker. The call is sent again after a reconnect when `resend` says it may be:
// reads, and calls that answer the same when repeated.
enum class Resend { kNo, kYes };
base::Result<wire::Bytes> sync_call(api::AgentLink& link, wire::Method method, wire::Bytes payload,
                                    std::chrono::steady_clock::time_point deadline, Resend resend);

// The same with message types; EPROTO when the answer does not decode.
template <class Reply, class Request>
base::Result<Reply> sync_call(api::AgentLink& link, wire::Method method, const Request& request,
                              std::chrono::steady_clock::time_point deadline, Resend resend) {
  auto bytes = sync_call(link, method, wire::encode(request), deadline, resend);
  if (!bytes) return std::move(bytes).error();
  auto reply = wire::decode<Reply>(*bytes);
  if (!reply) return base::errno_error(EPROTO, "the agent's answer");
  return *std::move(reply);
}

}  // namespace nearbox::daemon
