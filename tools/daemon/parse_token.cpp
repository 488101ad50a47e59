// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/parse_token.h"

namespace nearbox::daemon {

base::Result<wire::Token> parse_token(std::string_view hex) {
  wire::Token token{};
  if (hex.size() != token.size() * 2) return base::errno_error(EPROTO, "the agent's first line");
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (std::size_t i = 0; i < token.size(); ++i) {
    const int high = digit(hex[2 * i]);
    const int low = digit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return base::errno_error(EPROTO, "the agent's first line");
    token[i] = static_cast<std::byte>(high * 16 + low);
  }
  return token;
}

}  // namespace nearbox::daemon
