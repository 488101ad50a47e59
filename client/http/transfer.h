// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <curl/curl.h>

#include "client/http/http_client.h"

// One request on one curl handle; http_client.cpp alone includes this.
namespace nearbox::http {

// A response out of raw bytes, for what a server sent before it hung up. nullopt when they hold no
// whole header of a final (not 1xx) answer.
std::optional<Response> parse_raw_response(std::string_view bytes);

// What libcurl calls back into while a request runs.
//
// Threads: all in the thread that runs the transfer. Callbacks throw nothing.
class Transfer {
 public:
  explicit Transfer(const Request& request) : request_(request) {}
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;
  ~Transfer() { curl_slist_free_all(headers_); }

  base::Result<void> set_up(CURL* easy, std::chrono::milliseconds connect_timeout, const CaPaths& ca);
  base::Result<Response> finish(CURLcode code, std::chrono::milliseconds waited);

 private:
  static std::size_t on_header(char* data, std::size_t size, std::size_t count, void* self) noexcept;
  static std::size_t on_body(char* data, std::size_t size, std::size_t count, void* self) noexcept;
  static std::size_t on_read(char* into, std::size_t size, std::size_t count, void* self) noexcept;
  static int on_seek(void* self, curl_off_t offset, int origin) noexcept;
  static int on_close(void* self, curl_socket_t fd) noexcept;

  std::size_t take_header(std::string_view line);
  std::size_t take_body(std::string_view bytes);
  base::Result<void> add_headers();
  void set_body(CURL* easy);

  const Request& request_;
  curl_slist* headers_ = nullptr;
  char error_[CURL_ERROR_SIZE] = {};
  Response response_;
  std::size_t header_bytes_ = 0;
  bool headers_whole_ = false;  // libcurl takes a header that the end of the connection cut for a whole one
  std::uint64_t read_at_ = 0;
  std::string last_words_;  // read off a socket as it was closed during an upload
  std::optional<base::Error> own_error_;
};

}  // namespace nearbox::http
