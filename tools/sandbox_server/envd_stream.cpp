// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/envd_stream.h"

#include "tools/sandbox_server/envelope.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {

using nlohmann::json;

StreamLimits limits_of(const RequestHead& head) {
  StreamLimits out;
  constexpr std::uint64_t kMaxKeepalive = 3600;
  if (const auto ping = parse_number(head.headers.value_or("Keepalive-Ping-Interval", ""));
      ping && *ping > 0) {
    out.keepalive = std::chrono::seconds(std::min(*ping, kMaxKeepalive));
  }
  if (const auto text = head.headers.get("Connect-Timeout-Ms")) {
    constexpr std::size_t kMaxDigits = 10;
    const auto value = text->size() <= kMaxDigits ? parse_number(*text) : std::nullopt;
    if (!value) {
      out.error = "protocol error: invalid timeout";
    } else {
      out.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(*value);
    }
  }
  return out;
}

void begin_stream(Exchange& exchange) {
  Headers headers;
  headers.add("Content-Type", "application/connect+json");
  (void)exchange.start(200, std::move(headers), std::nullopt, {}).ok();
}

void end_stream(Exchange& exchange, const RpcReply& reply) {
  if (!exchange.started()) begin_stream(exchange);
  (void)exchange.write(end_envelope(reply)).ok();
  (void)exchange.finish().ok();
}

bool send_message(Exchange& exchange, const json& message) {
  return exchange.write(encode_envelope(0, message.dump())).ok();
}

base::Result<std::optional<json>> next_message(Exchange& exchange, std::string& buffer) {
  std::string chunk(kIoChunk, '\0');
  while (true) {
    auto envelope = take_envelope(buffer);
    if (!envelope) return std::move(envelope).error();
    if (*envelope) {
      if (((*envelope)->flags & kFlagCompressed) != 0) return base::errno_error(EINVAL, "compressed message");
      if (((*envelope)->flags & kFlagEnd) != 0) return std::optional<json>();
      auto message = json::parse((*envelope)->message, nullptr, false);
      if (!message.is_object()) return base::errno_error(EINVAL, "message is no JSON object");
      return std::optional<json>(std::move(message));
    }
    const auto got = exchange.read_body(chunk.data(), chunk.size());
    if (!got) return got.error();
    if (*got == 0) return std::optional<json>();
    buffer.append(chunk.data(), *got);
  }
}

std::string end_envelope(const RpcReply& reply) {
  json message = json::object();
  if (!reply.code.empty()) message["error"] = {{"code", reply.code}, {"message", reply.message}};
  return encode_envelope(kFlagEnd, message.dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace nearbox::sandbox_server
