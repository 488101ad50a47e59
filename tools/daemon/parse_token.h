// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "client/base/result.h"
#include "client/wire/messages.h"

namespace nearbox::daemon {

// The agent's token from its hexadecimal form; EPROTO for anything else.
base::Result<wire::Token> parse_token(std::string_view hex);

}  // namespace nearbox::daemon
