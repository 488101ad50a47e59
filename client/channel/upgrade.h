// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/base/result.h"
#include "client/channel/carrier.h"

// The HTTP/1.1 heads of a WebSocket upgrade (RFC 6455 section 4).
namespace nearbox::channel {

inline constexpr std::size_t kMaxHttpHead = 8 * 1024;  // start line and header, with the empty line
inline constexpr std::size_t kMaxHttpFields = 100;

// A head, in views of the text it was parsed from.
struct HttpHead {
  std::string_view start_line;
  std::vector<std::pair<std::string_view, std::string_view>> fields;

  // The field's value, "" when it is not there (names compare without case).
  std::string_view field(std::string_view name) const;
  // One of the comma-separated words of all fields of that name (without case).
  bool has_word(std::string_view name, std::string_view word) const;
};

// `text` ends with the empty line. Errors: EPROTO.
base::Result<HttpHead> parse_http_head(std::string_view text);

// Reads up to and with the empty line; what came behind it goes to `rest`.
// Errors: EMSGSIZE above kMaxHttpHead; ECONNRESET when the stream ends first; else the carrier's.
base::Result<std::string> read_http_head(Carrier& carrier, wire::Bytes& rest, Deadline deadline);

// Why an upgrade request cannot be met.
struct UpgradeRefusal {
  int status = 0;  // 400 or 426; 0: it can
  std::string text;
};
UpgradeRefusal check_upgrade_request(const HttpHead& head);

// Sec-WebSocket-Accept for a Sec-WebSocket-Key.
std::string websocket_accept(std::string_view key);
std::string base64(wire::ByteView bytes);
bool equal_nocase(std::string_view a, std::string_view b);

}  // namespace nearbox::channel
