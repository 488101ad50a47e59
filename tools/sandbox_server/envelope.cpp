// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/envelope.h"

#include <array>
#include <utility>

namespace nearbox::sandbox_server {

std::string encode_envelope(std::uint8_t flags, std::string_view message) {
  const auto size = static_cast<std::uint32_t>(message.size());
  std::string out;
  out.reserve(kEnvelopeHead + message.size());
  out.push_back(static_cast<char>(flags));
  for (const unsigned shift : {24U, 16U, 8U, 0U}) out.push_back(static_cast<char>((size >> shift) & 0xffU));
  out.append(message);
  return out;
}

base::Result<std::optional<Envelope>> take_envelope(std::string& buffer) {
  if (buffer.size() < kEnvelopeHead) return std::optional<Envelope>();
  std::size_t size = 0;
  for (std::size_t i = 1; i < kEnvelopeHead; ++i) {
    size = (size << 8U) | static_cast<unsigned char>(buffer[i]);
  }
  if (size > kMaxEnvelope)
    return base::errno_error(EMSGSIZE, "message of " + std::to_string(size) + " bytes");
  if (buffer.size() < kEnvelopeHead + size) return std::optional<Envelope>();
  Envelope out{static_cast<std::uint8_t>(buffer[0]), buffer.substr(kEnvelopeHead, size)};
  buffer.erase(0, kEnvelopeHead + size);
  return std::optional<Envelope>(std::move(out));
}

int http_status_of(std::string_view connect_code) {
  static constexpr std::array<std::pair<std::string_view, int>, 16> kTable{{{"canceled", 499},
                                                                            {"unknown", 500},
                                                                            {"invalid_argument", 400},
                                                                            {"deadline_exceeded", 504},
                                                                            {"not_found", 404},
                                                                            {"already_exists", 409},
                                                                            {"permission_denied", 403},
                                                                            {"resource_exhausted", 429},
                                                                            {"failed_precondition", 400},
                                                                            {"aborted", 409},
                                                                            {"out_of_range", 400},
                                                                            {"unimplemented", 501},
                                                                            {"internal", 500},
                                                                            {"unavailable", 503},
                                                                            {"data_loss", 500},
                                                                            {"unauthenticated", 401}}};
  for (const auto& [code, status] : kTable) {
    if (code == connect_code) return status;
  }
  return 500;
}

}  // namespace nearbox::sandbox_server
