// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/multipart.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

constexpr std::size_t kReadSize = 64 * 1024;

base::Error malformed(std::string_view what) {
  return base::errno_error(EBADMSG, "multipart: " + std::string(what));
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

}  // namespace

MultipartReader::MultipartReader(std::string boundary, Source source)
    : delimiter_("\r\n--" + std::move(boundary)), source_(std::move(source)) {}

std::optional<std::string> MultipartReader::parameter(std::string_view value, std::string_view name) {
  std::size_t at = value.find(';');
  while (at != std::string_view::npos) {
    value = trimmed(value.substr(at + 1));
    const auto equals = value.find('=');
    if (equals == std::string_view::npos) return std::nullopt;
    const auto key = trimmed(value.substr(0, equals));
    value = trimmed(value.substr(equals + 1));
    std::string text;
    if (!value.empty() && value.front() == '"') {
      std::size_t i = 1;
      for (; i < value.size() && value[i] != '"'; ++i) {
        if (value[i] == '\\' && i + 1 < value.size() && (value[i + 1] == '"' || value[i + 1] == '\\')) ++i;
        text.push_back(value[i]);
      }
      value = value.substr(std::min(i + 1, value.size()));
    } else {
      text = std::string(trimmed(value.substr(0, value.find(';'))));
    }
    if (iequals(key, name)) return text;
    at = value.find(';');
  }
  return std::nullopt;
}

std::optional<std::string> MultipartReader::boundary_of(std::string_view content_type) {
  constexpr std::size_t kMaxBoundary = 200;
  auto boundary = parameter(content_type, "boundary");
  if (!boundary || boundary->empty() || boundary->size() > kMaxBoundary) return std::nullopt;
  return boundary;
}

base::Result<bool> MultipartReader::fill() {
  const auto old = buffer_.size();
  buffer_.resize(old + kReadSize);
  const auto got = source_(buffer_.data() + old, kReadSize);
  buffer_.resize(old + (got ? *got : 0));
  if (!got) return got.error();
  return *got > 0;
}

base::Result<std::size_t> MultipartReader::read(char* data, std::size_t size) {
  while (in_part_) {
    const auto found = buffer_.find(delimiter_);
    if (found == 0) {
      in_part_ = false;
      break;
    }
    // Bytes that could be the beginning of a delimiter stay until more has come.
    std::size_t safe = found;
    if (found == std::string::npos) {
      safe = buffer_.size() >= delimiter_.size() ? buffer_.size() - delimiter_.size() + 1 : 0;
    }
    if (safe > 0) {
      const auto count = std::min(safe, size);
      std::memcpy(data, buffer_.data(), count);
      buffer_.erase(0, count);
      return count;
    }
    const auto more = fill();
    if (!more) return more.error();
    if (!*more) return malformed("unexpected EOF");
  }
  return std::size_t{0};
}

base::Result<std::optional<MultipartReader::Part>> MultipartReader::next() {
  if (ended_) return std::optional<Part>();
  std::array<char, 16 * 1024> scratch;
  while (true) {
    const auto got = read(scratch.data(), scratch.size());
    if (!got) return got.error();
    if (*got == 0) break;
  }
  buffer_.erase(0, delimiter_.size());
  while (buffer_.size() < 2) {
    const auto more = fill();
    if (!more) return more.error();
    if (!*more) return malformed("unexpected EOF");
  }
  if (buffer_.compare(0, 2, "--") == 0) {
    ended_ = true;
    return std::optional<Part>();
  }
  return part_header();
}

base::Result<std::optional<MultipartReader::Part>> MultipartReader::part_header() {
  // From the end of the delimiter's line on; its own "\r\n" makes an empty header block findable.
  std::size_t end = std::string::npos;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (buffer_.size() > kMaxPartHeader) return malformed("part header too long");
    const auto more = fill();
    if (!more) return more.error();
    if (!*more) return malformed("unexpected EOF");
  }
  if (end > kMaxPartHeader) return malformed("part header too long");
  Part part;
  std::string_view block(buffer_.data(), end);
  while (!block.empty()) {
    const auto line_end = block.find("\r\n");
    const auto line = block.substr(0, line_end);
    const auto colon = line.find(':');
    if (colon != std::string_view::npos && iequals(trimmed(line.substr(0, colon)), "content-disposition")) {
      const auto value = trimmed(line.substr(colon + 1));
      part.name = parameter(value, "name").value_or("");
      part.filename = parameter(value, "filename");
    }
    if (line_end == std::string_view::npos) break;
    block.remove_prefix(line_end + 2);
  }
  buffer_.erase(0, end + 4);
  // So that an empty part's delimiter, which needs a leading "\r\n", is still found: the header's
  // blank line has just been removed, and the delimiter brings its own.
  in_part_ = true;
  return std::optional<Part>(std::move(part));
}

}  // namespace nearbox::sandbox_server
