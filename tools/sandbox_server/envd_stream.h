// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "tools/sandbox_server/envd.h"

// What envd's streaming methods have in common: limits from the head, messages in, events out.
namespace nearbox::sandbox_server {

// How soon a stream notices that its client has gone.
inline constexpr std::chrono::milliseconds kClientCheck{100};

struct StreamLimits {
  std::chrono::seconds keepalive{90};
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::string error;  // not empty: a header that is none
};
StreamLimits limits_of(const RequestHead& head);

// Begins a streaming reply. Its HTTP status is 200 whatever comes.
void begin_stream(Exchange& exchange);
// Ends it, with an error where `reply` is one; begins it where that has not happened.
void end_stream(Exchange& exchange, const RpcReply& reply);
// False: the client is gone.
bool send_message(Exchange& exchange, const nlohmann::json& message);

// The next message of a request body; nothing at its end. `buffer` keeps what was read beyond it.
base::Result<std::optional<nlohmann::json>> next_message(Exchange& exchange, std::string& buffer);

}  // namespace nearbox::sandbox_server
