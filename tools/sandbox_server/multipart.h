// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "client/base/result.h"

namespace nearbox::sandbox_server {

// Reads the parts of a multipart body one after another, without holding a part in memory.
//
// Threads: one. Errors: EBADMSG for what is no multipart body; the source's own errors.
// Limits:  kMaxPartHeader for the header block of a part.
// Source:  RFC 2046 section 5.1, RFC 7578.
class MultipartReader {
 public:
  static constexpr std::size_t kMaxPartHeader = 16 * 1024;
  // Bytes of the body; 0 at its end.
  using Source = std::function<base::Result<std::size_t>(char*, std::size_t)>;
  struct Part {
    std::string name;
    std::optional<std::string> filename;  // as sent, directories kept
  };

  MultipartReader(std::string boundary, Source source);

  // Skips what is left of the current part and begins the next; nothing after the last one.
  base::Result<std::optional<Part>> next();
  // Bytes of the current part; 0 at its end.
  base::Result<std::size_t> read(char* data, std::size_t size);

  // The boundary of a Content-Type value, or nothing when it has none.
  static std::optional<std::string> boundary_of(std::string_view content_type);
  // A parameter of a header value such as `form-data; name="file"; filename="a \"b\""`.
  static std::optional<std::string> parameter(std::string_view value, std::string_view name);

 private:
  base::Result<bool> fill();  // false: the source is at its end
  base::Result<std::optional<Part>> part_header();

  std::string delimiter_;  // "\r\n--boundary"
  Source source_;
  std::string buffer_ = "\r\n";  // so that the first delimiter looks like the others
  bool in_part_ = true;          // the preamble is skipped as if it were a part
  bool ended_ = false;
};

}  // namespace nearbox::sandbox_server
