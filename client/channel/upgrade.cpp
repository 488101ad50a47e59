// SPDX-License-Identifier: Apache-2.0
#include "client/channel/upgrade.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include <nettle/base64.h>
#include <nettle/sha1.h>

namespace nearbox::channel {
namespace {

constexpr std::string_view kEnd = "\r\n\r\n";
// RFC 6455 section 1.3.
constexpr std::string_view kAcceptGuid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
constexpr std::size_t kKeyChars = 24;  // 16 bytes in base64

// ASCII only: the C library's would ask the locale.
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool is_field_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    const char l = lower(c);
    return (l >= 'a' && l <= 'z') || (c >= '0' && c <= '9') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

bool has_control(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    const auto u = static_cast<unsigned char>(c);
    return (u < 0x20 && c != '\t') || u == 0x7f;
  });
}

bool is_key(std::string_view key) {
  return key.size() == kKeyChars && key.substr(22) == "==" &&
         std::all_of(key.begin(), key.begin() + 22, [](char c) {
           const char l = lower(c);
           return (l >= 'a' && l <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '/';
         });
}

}  // namespace

bool equal_nocase(std::string_view a, std::string_view b) {
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) { return lower(x) == lower(y); });
}

std::string_view HttpHead::field(std::string_view name) const {
  for (const auto& [key, value] : fields) {
    if (equal_nocase(key, name)) return value;
  }
  return {};
}

bool HttpHead::has_word(std::string_view name, std::string_view word) const {
  for (const auto& [key, value] : fields) {
    if (!equal_nocase(key, name)) continue;
    auto rest = value;
    while (!rest.empty()) {
      const auto comma = rest.find(',');
      if (equal_nocase(trim(rest.substr(0, comma)), word)) return true;
      rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    }
  }
  return false;
}

base::Result<HttpHead> parse_http_head(std::string_view text) {
  if (!text.ends_with(kEnd)) return base::errno_error(EPROTO, "HTTP head without its end");
  text.remove_suffix(2);  // each line now ends with CR LF
  HttpHead head;
  while (!text.empty()) {
    const auto end = text.find("\r\n");
    if (end == std::string_view::npos) return base::errno_error(EPROTO, "HTTP line without its end");
    const auto line = text.substr(0, end);
    text.remove_prefix(end + 2);
    if (has_control(line)) return base::errno_error(EPROTO, "control character in an HTTP head");
    if (head.start_line.empty()) {
      if (line.empty()) return base::errno_error(EPROTO, "HTTP head without a first line");
      head.start_line = line;
      continue;
    }
    const auto colon = line.find(':');
    if (colon == std::string_view::npos || !is_field_name(line.substr(0, colon))) {
      return base::errno_error(EPROTO, "malformed HTTP field");
    }
    if (head.fields.size() == kMaxHttpFields) return base::errno_error(EPROTO, "too many HTTP fields");
    head.fields.emplace_back(line.substr(0, colon), trim(line.substr(colon + 1)));
  }
  if (head.start_line.empty()) return base::errno_error(EPROTO, "HTTP head without a first line");
  return head;
}

base::Result<std::string> read_http_head(Carrier& carrier, wire::Bytes& rest, Deadline deadline) {
  std::string text;
  std::array<std::byte, 2048> part{};
  while (true) {
    auto got = carrier.read(part, deadline);
    if (!got) return std::move(got).error();
    if (*got == 0) return base::errno_error(ECONNRESET, "connection closed inside the HTTP head");
    const auto from = text.size() < kEnd.size() ? 0 : text.size() - kEnd.size();
    text += wire::as_text(wire::ByteView(part).first(*got));
    const auto end = text.find(kEnd, from);
    if (end != std::string::npos && end + kEnd.size() <= kMaxHttpHead) {
      const auto behind = wire::as_view(std::string_view(text).substr(end + kEnd.size()));
      rest.assign(behind.begin(), behind.end());
      text.resize(end + kEnd.size());
      return text;
    }
    if (text.size() > kMaxHttpHead) return base::errno_error(EMSGSIZE, "HTTP head above 8 KiB");
  }
}

UpgradeRefusal check_upgrade_request(const HttpHead& head) {
  const auto line = head.start_line;
  const auto space = line.find(' ');
  const auto last = line.rfind(' ');
  if (space == std::string_view::npos || last == space || line.substr(last + 1) != "HTTP/1.1") {
    return {400, "an HTTP/1.1 request is expected here"};
  }
  if (line.substr(0, space) != "GET" || line[space + 1] != '/')
    return {400, "GET of a path is expected here"};
  if (!head.has_word("Upgrade", "websocket") || !head.has_word("Connection", "upgrade")) {
    return {426, "this port speaks WebSocket only"};
  }
  if (head.field("Sec-WebSocket-Version") != "13") return {426, "WebSocket version 13 is expected here"};
  if (!is_key(head.field("Sec-WebSocket-Key"))) return {400, "Sec-WebSocket-Key is malformed"};
  return {};
}

std::string base64(wire::ByteView bytes) {
  std::string out(BASE64_ENCODE_RAW_LENGTH(bytes.size()), '\0');
  base64_encode_raw(out.data(), bytes.size(), reinterpret_cast<const std::uint8_t*>(bytes.data()));
  return out;
}

std::string websocket_accept(std::string_view key) {
  sha1_ctx context;
  sha1_init(&context);
  for (const auto part : {key, kAcceptGuid}) {
    sha1_update(&context, part.size(), reinterpret_cast<const std::uint8_t*>(part.data()));
  }
  std::array<std::byte, SHA1_DIGEST_SIZE> digest{};
  sha1_digest(&context, digest.size(), reinterpret_cast<std::uint8_t*>(digest.data()));
  return base64(digest);
}

}  // namespace nearbox::channel
