// SPDX-License-Identifier: Apache-2.0
#include "client/http/transfer.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <sys/socket.h>
#include <unistd.h>

#include "client/api/error_code.h"

namespace nearbox::http {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
  }
  return out;
}

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

// "HTTP/1.1 404 Not Found" → 404; 0 for anything else.
int status_of(std::string_view line) {
  if (!line.starts_with("HTTP/")) return 0;
  const auto space = line.find(' ');
  if (space == std::string_view::npos) return 0;
  int status = 0;
  const auto digits = line.substr(space + 1, 3);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), status);
  return error == std::errc{} && end == digits.data() + 3 ? status : 0;
}

void add_header(Response& response, std::string_view line) {
  const auto colon = line.find(':');
  if (colon == std::string_view::npos) return;
  response.headers.push_back({lower(trim(line.substr(0, colon))), std::string(trim(line.substr(colon + 1)))});
}

base::Error bad_answer(std::string_view url, std::string_view what) {
  return api::fill_error(api::ErrorCode::kNetUnreachable, {{"HOST", host_of(url)}, {"WHY", what}});
}

bool is_clean(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
  });
}

bool sends_body(std::string_view method) { return method == "POST" || method == "PUT" || method == "PATCH"; }

}  // namespace

std::optional<Response> parse_raw_response(std::string_view bytes) {
  while (true) {
    const auto end = bytes.find("\r\n\r\n");
    if (end == std::string_view::npos || end > kMaxResponseHeaders) return std::nullopt;
    std::string_view head = bytes.substr(0, end);
    bytes.remove_prefix(end + 4);
    Response response;
    response.status = status_of(head.substr(0, head.find("\r\n")));
    if (response.status < 100) return std::nullopt;
    if (response.status < 200) continue;
    for (auto at = head.find("\r\n"); at != std::string_view::npos; at = head.find("\r\n")) {
      head.remove_prefix(at + 2);
      add_header(response, head.substr(0, head.find("\r\n")));
    }
    response.body = bytes.substr(0, kMaxErrorBody);
    return response;
  }
}

std::string_view Response::header(std::string_view name) const {
  for (const auto& h : headers) {
    if (h.name == name) return h.value;
  }
  return {};
}

std::optional<std::chrono::seconds> Response::retry_after() const {
  const auto text = header("retry-after");
  std::uint32_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return std::chrono::seconds(seconds);
}

base::Result<void> Transfer::add_headers() {
  const auto add = [this](const std::string& line) {
    curl_slist* longer = is_clean(line) ? curl_slist_append(headers_, line.c_str()) : nullptr;
    if (longer != nullptr) headers_ = longer;
    return longer != nullptr;
  };
  bool fine = true;
  for (const auto& header : request_.headers) fine = fine && add(header.name + ": " + header.value);
  for (const auto& [name, secret] : request_.secrets) fine = fine && add(name + ": " + secret.reveal());
  fine = fine && add(request_.file ? "Expect: 100-continue" : "Expect:");
  if (!fine)
    return api::fill_error(api::ErrorCode::kArgInvalid,
                           {{"NAME", "request header"}, {"WHY", "it holds control characters"}});
  return {};
}

void Transfer::set_body(CURL* easy) {
  if (request_.method == "GET") {
    curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
    return;
  }
  if (sends_body(request_.method)) {
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    if (request_.file) {
      curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request_.file->size));
      curl_easy_setopt(easy, CURLOPT_READFUNCTION, &Transfer::on_read);
      curl_easy_setopt(easy, CURLOPT_READDATA, this);
      curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, &Transfer::on_seek);
      curl_easy_setopt(easy, CURLOPT_SEEKDATA, this);
    } else {
      curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request_.body.size()));
      curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request_.body.data());
    }
  }
  curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request_.method.c_str());
}

base::Result<void> Transfer::set_up(CURL* easy, std::chrono::milliseconds connect_timeout,
                                    const CaPaths& ca) {
  if (!is_plain_url(request_.url)) {
    return api::fill_error(api::ErrorCode::kArgInvalid,
                           {{"NAME", "address"}, {"WHY", "it is no plain http(s) address"}});
  }
  if (auto added = add_headers(); !added) return added;
  curl_easy_reset(easy);
  curl_easy_setopt(easy, CURLOPT_URL, request_.url.c_str());
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers_);
  curl_easy_setopt(easy, CURLOPT_USERAGENT, "nearbox/" NEARBOX_VERSION);
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(easy, CURLOPT_SSL_ENABLE_ALPN, 1L);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 1L);
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
  curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPIDLE, 20L);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPINTVL, 10L);
  curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, request_.repeatable ? 0L : 1L);
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(std::max<std::int64_t>(connect_timeout.count(), 1)));
  curl_easy_setopt(easy, CURLOPT_EXPECT_100_TIMEOUT_MS, static_cast<long>(kExpectTimeout.count()));
  if (request_.idle_limit.count() > 0) {
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, static_cast<long>(request_.idle_limit.count()));
  }
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error_);
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, &Transfer::on_header);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, this);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Transfer::on_body);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, this);
  apply_ca_paths(easy, ca);
  apply_proxy_rules(easy, request_.url);
  set_body(easy);
  if (request_.file) {
    // A connection keeps the pointer it was made with, so an upload's is never used again.
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, &Transfer::on_close);
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, this);
    curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 1L);
    curl_easy_setopt(easy, CURLOPT_FORBID_REUSE, 1L);
  }
  return {};
}

base::Result<Response> Transfer::finish(CURLcode code, std::chrono::milliseconds waited) {
  if (own_error_) return std::move(*own_error_);
  if (code == CURLE_OK && headers_whole_) return std::move(response_);
  if (code == CURLE_OK) return bad_answer(request_.url, "its answer was cut");
  if (request_.file && code != CURLE_OPERATION_TIMEDOUT) {
    // The server answered, then hung up on the body it did not want.
    if (response_.status >= 300 && headers_whole_) return std::move(response_);
    if (auto refusal = parse_raw_response(last_words_)) return std::move(*refusal);
  }
  return curl_error(code, request_.url, error_, waited);
}

std::size_t Transfer::on_header(char* data, std::size_t size, std::size_t count, void* self) noexcept {
  try {
    return static_cast<Transfer*>(self)->take_header({data, size * count});
  } catch (...) {
    return 0;
  }
}

std::size_t Transfer::take_header(std::string_view line) {
  header_bytes_ += line.size();
  if (header_bytes_ > kMaxResponseHeaders) {
    own_error_ = bad_answer(request_.url, "its answer has too large a header");
    return 0;
  }
  if (line.starts_with("HTTP/")) {  // 100 Continue, a proxy's answer to CONNECT, then the real one
    response_ = Response{};
    response_.status = status_of(line);
    headers_whole_ = false;
  } else if (trim(line).empty()) {
    headers_whole_ = true;
  } else {
    add_header(response_, line);
  }
  return line.size();
}

std::size_t Transfer::on_body(char* data, std::size_t size, std::size_t count, void* self) noexcept {
  try {
    return static_cast<Transfer*>(self)->take_body({data, size * count});
  } catch (...) {
    return 0;
  }
}

std::size_t Transfer::take_body(std::string_view bytes) {
  if (response_.ok() && request_.sink) {
    if (auto taken = request_.sink(bytes); !taken) {
      own_error_ = std::move(taken).error();
      return 0;
    }
    return bytes.size();
  }
  if (!response_.ok()) {
    response_.body += bytes.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, response_.body.size()));
    return bytes.size();
  }
  if (response_.body.size() + bytes.size() > request_.max_body) {
    own_error_ = bad_answer(request_.url, "its answer is too large");
    return 0;
  }
  response_.body += bytes;
  return bytes.size();
}

std::size_t Transfer::on_read(char* into, std::size_t size, std::size_t count, void* self_ptr) noexcept {
  auto* self = static_cast<Transfer*>(self_ptr);
  const std::uint64_t left = self->request_.file->size - self->read_at_;
  const std::size_t want = std::min<std::uint64_t>(size * count, left);
  if (want == 0) return 0;
  ssize_t n = 0;
  do {
    n = ::pread(self->request_.file->fd, into, want, static_cast<off_t>(self->read_at_));
  } while (n < 0 && errno == EINTR);
  if (n <= 0) {
    const int error = n < 0 ? errno : ESTALE;  // shorter than it was when the upload began
    try {
      self->own_error_ = base::errno_error(error, "read the file to upload");
    } catch (...) {
    }
    return CURL_READFUNC_ABORT;
  }
  self->read_at_ += static_cast<std::uint64_t>(n);
  return static_cast<std::size_t>(n);
}

int Transfer::on_seek(void* self_ptr, curl_off_t offset, int origin) noexcept {
  auto* self = static_cast<Transfer*>(self_ptr);
  if (origin != SEEK_SET || offset < 0) return CURL_SEEKFUNC_FAIL;
  self->read_at_ = static_cast<std::uint64_t>(offset);
  return CURL_SEEKFUNC_OK;
}

// A refused upload ends in a failed send while the refusal waits unread in the socket: libcurl 7.88
// returns the send error and closes. What a TLS connection leaves is unreadable here, and no
// response comes of it; there the edge answers whole.
int Transfer::on_close(void* self_ptr, curl_socket_t fd) noexcept {
  auto* self = static_cast<Transfer*>(self_ptr);
  try {
    char buffer[16 * 1024];
    while (self->last_words_.size() < kMaxErrorBody) {
      const ssize_t n = ::recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
      if (n <= 0) break;
      self->last_words_.append(buffer, static_cast<std::size_t>(n));
    }
  } catch (...) {
  }
  return ::close(fd);
}

}  // namespace nearbox::http
