// SPDX-License-Identifier: Apache-2.0
#include "client/channel/ws_client.h"

#include <algorithm>
#include <array>
#include <sys/random.h>

#include "client/channel/upgrade.h"
#include "client/channel/websocket.h"

namespace nearbox::channel {
namespace {

bool safe(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    const auto u = static_cast<unsigned char>(c);
    return u < 0x20 || u == 0x7f;
  });
}

int errno_of(int status) {
  switch (status) {
    case 401:
    case 403:
      return EACCES;
    case 404:
      return ENOENT;
    case 429:
    case 502:
    case 503:
    case 504:
      return EAGAIN;
    default:
      return EPROTO;
  }
}

// Of "HTTP/1.1 101 …"; 0 when the line is no such line.
int status_of(std::string_view line) {
  if (!line.starts_with("HTTP/1.1 ") || line.size() < 12) return 0;
  int status = 0;
  for (const char c : line.substr(9, 3)) {
    if (c < '0' || c > '9') return 0;
    status = status * 10 + (c - '0');
  }
  return status;
}

base::Result<void> check_answer(const HttpHead& head, const std::string& key) {
  const int status = status_of(head.start_line);
  if (status == 0) return base::errno_error(EPROTO, "WebSocket upgrade: the answer is no HTTP/1.1");
  if (status != 101) {
    return base::errno_error(
        errno_of(status), "WebSocket upgrade: the server answered " + std::string(head.start_line.substr(9)));
  }
  if (!head.has_word("Upgrade", "websocket") || !head.has_word("Connection", "upgrade") ||
      head.field("Sec-WebSocket-Accept") != websocket_accept(key)) {
    return base::errno_error(EPROTO, "WebSocket upgrade: the answer does not fit the request");
  }
  if (!head.field("Sec-WebSocket-Extensions").empty() || !head.field("Sec-WebSocket-Protocol").empty()) {
    return base::errno_error(EPROTO, "WebSocket upgrade: the server chose what was not offered");
  }
  return {};
}

}  // namespace

base::Result<std::unique_ptr<Carrier>> upgrade_websocket(std::unique_ptr<Carrier> raw,
                                                         const std::string& host, const std::string& path,
                                                         const HttpFields& extra, Deadline deadline) {
  std::array<std::byte, 16> random{};
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
    return base::last_errno("getrandom");
  }
  const auto key = base64(random);
  bool fine = safe(host) && safe(path) && path.starts_with('/') && path.find(' ') == std::string::npos;
  std::string request = "GET " + path + " HTTP/1.1\r\nHost: " + host +
                        "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
                        "\r\nSec-WebSocket-Key: " +
                        key + "\r\n";
  for (const auto& [name, value] : extra) {
    fine = fine && safe(name) && safe(value) && name.find(':') == std::string::npos;
    request += name + ": " + value + "\r\n";
  }
  request += "\r\n";
  if (!fine) return base::errno_error(EINVAL, "WebSocket upgrade: malformed host, path or field");
  if (auto done = raw->write(wire::as_view(request), deadline); !done) return std::move(done).error();
  wire::Bytes early;
  auto text = read_http_head(*raw, early, deadline);
  if (!text) return std::move(text).error().during("WebSocket upgrade");
  auto head = parse_http_head(*text);
  if (!head) return std::move(head).error().during("WebSocket upgrade");
  if (auto good = check_answer(*head, key); !good) return std::move(good).error();
  return std::unique_ptr<Carrier>(
      std::make_unique<WsCarrier>(std::move(raw), WsRole::kClient, std::move(early)));
}

}  // namespace nearbox::channel
