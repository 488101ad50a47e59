// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "client/base/result.h"

// Connect's streaming frames: one flag byte, a big-endian length, a JSON message.
// Source: connect-go 1.18.1, envelope.go; flags: 1 compressed, 2 end of stream.
namespace nearbox::sandbox_server {

inline constexpr std::size_t kEnvelopeHead = 5;
inline constexpr std::size_t kMaxEnvelope = 16 * 1024 * 1024;
inline constexpr std::uint8_t kFlagCompressed = 1;
inline constexpr std::uint8_t kFlagEnd = 2;

struct Envelope {
  std::uint8_t flags = 0;
  std::string message;
};

std::string encode_envelope(std::uint8_t flags, std::string_view message);

// Takes one envelope off the front of `buffer`; nothing when it is not complete yet.
// EMSGSIZE: longer than kMaxEnvelope.
base::Result<std::optional<Envelope>> take_envelope(std::string& buffer);

// Connect's error codes, by name. Source: connect-go 1.18.1, code.go and protocol_connect.go.
int http_status_of(std::string_view connect_code);

}  // namespace nearbox::sandbox_server
