// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <stop_token>

#include "client/base/result.h"
#include "client/channel/carrier.h"
#include "client/http/data_plane.h"

namespace nearbox::http {

// Not /ws: E2B's edge limits that path's rate.
inline constexpr const char* kAgentPath = "/nearbox";

// A WebSocket to the agent behind `route` (route_to() of the agent's port). The agent's own token is
// not spent here: it goes into the channel's first message.
// Errors: as CurlCarrier::connect() and channel::upgrade_websocket().
base::Result<std::unique_ptr<channel::Carrier>> dial_agent(const Route& route, channel::Deadline deadline,
                                                           std::stop_token stop = {});

}  // namespace nearbox::http
