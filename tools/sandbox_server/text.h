// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Pure helpers on request text.
namespace nearbox::sandbox_server {

// Percent-decoding; a broken escape stays as it is. `plus`: '+' is a space (form encoding).
std::string percent_decode(std::string_view text, bool plus);

// The pairs of a query in order, decoded once; the first value of a name counts.
std::map<std::string, std::string> parse_query(std::string_view query);

// A user name and password of "Authorization: Basic …"; nothing when it is no such header.
std::optional<std::pair<std::string, std::string>> parse_basic_auth(std::string_view header);

std::string base64_encode(std::string_view data);  // padded, standard alphabet
std::optional<std::string> base64_decode(std::string_view text);

bool iequals(std::string_view a, std::string_view b);
bool valid_utf8(std::string_view text);
// A decimal number without sign, spaces or overflow.
std::optional<std::uint64_t> parse_number(std::string_view text);
// strerror, beginning in lower case as Go's errors do (clients look for "text file busy").
std::string errno_text(int err);
std::string hex(std::string_view bytes);
// `bytes` random bytes from the kernel; the process ends when there are none.
std::string random_bytes(std::size_t bytes);

// Where a data plane request goes: by a host `<port>-<id>.<anything>`, else by the routing headers.
// Source: e2b-dev/infra 54693ff, packages/shared/pkg/proxy/host.go; unlike there the headers count
// under every host name, since people may name this machine as they like.
struct Route {
  std::string sandbox_id;
  std::uint16_t port = 0;
};
struct RouteResult {
  std::optional<Route> route;  // nothing and no error: the request names no sandbox
  std::string error;           // a lone or malformed routing header
};
RouteResult route_of(std::string_view host, std::optional<std::string_view> id_header,
                     std::optional<std::string_view> port_header);

// True for "i" and ids like it: lower-case letters and digits, bounded.
bool valid_sandbox_id(std::string_view id);

// One satisfiable byte range of a file, or what to answer instead.
struct ByteRange {
  enum class Kind { kNone, kRange, kUnsatisfiable };
  Kind kind = Kind::kNone;
  std::uint64_t first = 0;
  std::uint64_t length = 0;
};
// "bytes=a-b", "bytes=a-", "bytes=-n". Several ranges and other units count as none (the whole file).
ByteRange parse_range(std::string_view header, std::uint64_t size);

// "Sun, 06 Nov 1994 08:49:37 GMT", both ways.
std::string http_date(std::int64_t unix_seconds);
std::optional<std::int64_t> parse_http_date(std::string_view text);
// "2026-01-02T03:04:05.678901Z": 0, 3, 6 or 9 fractional digits, as protobuf's JSON has it.
std::string rfc3339(std::int64_t seconds, std::int64_t nanoseconds);
std::optional<std::int64_t> parse_rfc3339(std::string_view text);  // in milliseconds since 1970

// The signature of a file URL. Source: e2b-dev/infra 54693ff, packages/shared/pkg/keys/sha256.go.
// `operation` is "read" or "write"; path and user are the query's values, "" when absent.
std::string file_signature(std::string_view path, std::string_view operation, std::string_view user,
                           std::string_view token, std::optional<std::int64_t> expires);

}  // namespace nearbox::sandbox_server
