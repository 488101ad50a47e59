// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "client/base/result.h"

namespace nearbox::agent {

// Copies bytes both ways between (in, out) and a connected socket until the socket's peer has closed
// and all it sent is out, or `out` is broken. The end of `in` is passed on as a half-close.
// Neither descriptor is closed; pipes and sockets are made non-blocking meanwhile.
// Waits for as long as the two ends do: they have heartbeats, this has none.
base::Result<void> relay(int in, int out, int socket);

}  // namespace nearbox::agent
