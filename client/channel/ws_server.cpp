// SPDX-License-Identifier: Apache-2.0
#include "client/channel/ws_server.h"

#include "client/channel/fd_carrier.h"
#include "client/channel/upgrade.h"
#include "client/channel/websocket.h"

namespace nearbox::channel {
namespace {

// Best effort: the request is refused whether the other end hears it or not.
base::Error refuse(Carrier& carrier, const UpgradeRefusal& refusal, Deadline deadline) {
  const std::string body = refusal.text + "\n";
  std::string answer = "HTTP/1.1 ";
  answer += refusal.status == 426 ? "426 Upgrade Required" : "400 Bad Request";
  if (refusal.status == 426) {
    answer += "\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13";
  } else {
    answer += "\r\nConnection: close";
  }
  answer +=
      "\r\nContent-Type: text/plain\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  (void)carrier.write(wire::as_view(answer), deadline);
  return base::errno_error(EPROTO, "WebSocket upgrade: " + refusal.text);
}

}  // namespace

base::Result<std::unique_ptr<Carrier>> accept_websocket(base::UniqueFd socket, Deadline deadline) {
  auto raw = FdCarrier::from_socket(std::move(socket));
  if (!raw) return std::move(raw).error();
  return accept_websocket(std::unique_ptr<Carrier>(std::move(*raw)), deadline);
}

base::Result<std::unique_ptr<Carrier>> accept_websocket(std::unique_ptr<Carrier> raw, Deadline deadline) {
  wire::Bytes early;
  auto text = read_http_head(*raw, early, deadline);
  if (!text) {
    if (text.error().as_errno() == EMSGSIZE) {
      (void)refuse(*raw, {400, "the request's head is too long"}, deadline);
    }
    return std::move(text).error().during("WebSocket upgrade");
  }
  auto head = parse_http_head(*text);
  if (!head) return refuse(*raw, {400, head.error().context}, deadline);
  if (const auto refusal = check_upgrade_request(*head); refusal.status != 0) {
    return refuse(*raw, refusal, deadline);
  }
  const std::string answer =
      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Accept: " +
      websocket_accept(head->field("Sec-WebSocket-Key")) + "\r\n\r\n";
  if (auto done = raw->write(wire::as_view(answer), deadline); !done) return std::move(done).error();
  return std::unique_ptr<Carrier>(
      std::make_unique<WsCarrier>(std::move(raw), WsRole::kServer, std::move(early)));
}

}  // namespace nearbox::channel
