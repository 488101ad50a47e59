// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "client/api/envd.h"
#include "client/base/result.h"

// The Connect protocol's JSON, as envd speaks it: decoders of foreign bytes, without any I/O.
// Source: connect-go 1.18.1, protocol_connect.go; infra 54693ff, packages/envd/spec/process/process.proto.
namespace nearbox::http {

inline constexpr std::size_t kMaxEnvelope = 4 * 1024 * 1024;
inline constexpr std::size_t kMaxListEntries = 200'000;

struct Envelope {
  std::uint8_t flags = 0;
  std::string_view payload;  // into the bytes it was parsed from
  bool is_end() const { return (flags & 2) != 0; }
};

// One message off the front of `bytes`. The bytes it took; 0: there is not a whole one yet.
// EMSGSIZE: longer than kMaxEnvelope. EPROTO: compressed, or flags nobody knows.
base::Result<std::size_t> parse_envelope(std::string_view bytes, Envelope& out);
std::string make_envelope(std::string_view json);

// Puts the messages of a stream together from pieces of any size.
class EnvelopeReader {
 public:
  using Take = std::function<base::Result<void>(const Envelope&)>;
  // Calls `take` for each whole message; nothing may follow the end message (EPROTO).
  base::Result<void> feed(std::string_view bytes, const Take& take);
  bool ended() const { return ended_; }

 private:
  std::string buffer_;
  bool ended_ = false;
};

struct RpcError {
  std::string code;  // "not_found"; empty when the body is none of Connect's
  std::string message;
};
// Of a unary error's body, or of an end message; nullopt: no error in there.
std::optional<RpcError> parse_rpc_error(std::string_view json);
std::optional<RpcError> parse_end_message(std::string_view json);

struct ProcessEvent {
  enum class Kind { kStart, kStdout, kStderr, kEnd, kKeepalive, kOther } kind = Kind::kOther;
  std::uint32_t pid = 0;
  std::string data;
  api::RunResult end;
};
// nullopt: it is not what an event may look like.
std::optional<ProcessEvent> parse_process_event(std::string_view json);

// {"entry": …}, {"entries": […]}
std::optional<api::RemoteEntry> parse_entry(std::string_view json);
std::optional<std::vector<api::RemoteEntry>> parse_entries(std::string_view json);

std::string base64_encode(std::string_view bytes);
std::optional<std::string> base64_decode(std::string_view text);

}  // namespace nearbox::http
