// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/base/result.h"
#include "client/channel/carrier.h"
#include "client/wire/messages.h"

// The client's half of the handshake; the agent's is in mux_server.h.
namespace nearbox::channel {

base::Result<void> send_hello(Carrier& carrier, const wire::Hello& hello, Deadline deadline);

// Reads the agent's answer.
// Errors: the errno of a Refused (EACCES token, EPROTO version, EBUSY limit) with its text; EPROTO for
//         garbage; ECONNRESET when the peer closed first; else the carrier's.
base::Result<wire::Welcome> read_welcome(Carrier& carrier, Deadline deadline);

}  // namespace nearbox::channel
