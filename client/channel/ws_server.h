// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/channel/carrier.h"

namespace nearbox::channel {

// Answers a WebSocket upgrade on a connected socket, under any path, and carries bytes over it.
// A request that is no such upgrade is answered with 400 or 426 and a line of text.
// Errors: EPROTO for such a request; EMSGSIZE for a head above 8 KiB; ETIMEDOUT; else the socket's.
base::Result<std::unique_ptr<Carrier>> accept_websocket(base::UniqueFd socket, Deadline deadline);
// The same above any carrier.
base::Result<std::unique_ptr<Carrier>> accept_websocket(std::unique_ptr<Carrier> raw, Deadline deadline);

}  // namespace nearbox::channel
