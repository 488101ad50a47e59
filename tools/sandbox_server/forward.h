// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tools/sandbox_server/http.h"

namespace nearbox::sandbox_server {

// Sends the request of `exchange` over a fresh upstream connection and its reply back; after a 101
// copies bytes both ways until both sides are done.
// Errors: only while nothing of the reply has been sent; later ones end the connection.
base::Result<void> forward(Exchange& exchange, base::UniqueFd upstream);

}  // namespace nearbox::sandbox_server
