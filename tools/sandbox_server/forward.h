// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "tools/sandbox_server/http.h"

namespace nearbox::sandbox_server {

// Sends the request of `exchange` over a fresh upstream connection and its reply back; after a 101
// copies bytes both ways until both sides are done.
// `masked_host`: the Host that the upstream sees instead of the client's; empty: the same one.
// begins() runs right before the reply does; false: it is not wanted any more, which is an error.
// Errors: only while nothing of the reply has been sent; later ones end the connection.
base::Result<void> forward(Exchange& exchange, base::UniqueFd upstream, const std::string& masked_host,
                           std::function<bool()> begins);

}  // namespace nearbox::sandbox_server
