// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/base/result.h"
#include "client/channel/carrier.h"

namespace nearbox::channel {

using HttpFields = std::vector<std::pair<std::string, std::string>>;

// Asks the HTTP/1.1 server behind `raw` for a WebSocket and carries bytes over it. `host` is the Host
// field, `path` begins with '/'. The values of `extra` (which may be tokens) are in no error text.
// Errors: EINVAL for a host, path or field with a control character; EACCES for 401 and 403, ENOENT
//         for 404, EAGAIN for 429, 502, 503 and 504, EPROTO for other answers, each with the status in
//         its text; else the carrier's.
base::Result<std::unique_ptr<Carrier>> upgrade_websocket(std::unique_ptr<Carrier> raw,
                                                         const std::string& host, const std::string& path,
                                                         const HttpFields& extra, Deadline deadline);

}  // namespace nearbox::channel
