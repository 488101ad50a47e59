// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/secret.h"
#include "client/http/curl_util.h"

namespace nearbox::http {

using Deadline = std::chrono::steady_clock::time_point;

inline constexpr std::size_t kMaxResponseBody = 16 * 1024 * 1024;  // where a request does not say less
inline constexpr std::size_t kMaxErrorBody = 64 * 1024;  // of a status that is not 2xx; the rest is dropped
inline constexpr std::size_t kMaxResponseHeaders = 256 * 1024;
inline constexpr std::size_t kMaxTransfers = 64;  // at once; more wait their turn
inline constexpr std::size_t kMaxIdleSlots = 8;   // kept with their connections
inline constexpr long kMaxSlotConnections = 4;
inline constexpr std::chrono::milliseconds kConnectTimeout{20'000};
inline constexpr std::chrono::milliseconds kExpectTimeout{
    2'000};  // wait for "100 Continue", then send all the same

struct Header {
  std::string name, value;
};

// Part of a file as a body: `size` bytes from the start, by pread(2). The descriptor stays the caller's.
struct FileBody {
  int fd = -1;
  std::uint64_t size = 0;
};

struct Request {
  std::string method = "GET";
  std::string url;
  std::vector<Header> headers;
  std::vector<std::pair<std::string, base::Secret>> secrets;  // headers that are never logged
  std::string body;                                           // sent with POST, PUT and PATCH
  std::optional<FileBody> file;  // instead of `body`; sent with Expect: 100-continue
  bool repeatable = false;       // false: a kept connection, on which libcurl may send twice, is not used
  std::chrono::seconds idle_limit{60};  // no byte either way for so long ends it; 0: no such limit
  std::size_t max_body = kMaxResponseBody;
  // Takes the body of a 2xx answer piece by piece; without it the body is in the Response. An error
  // ends the transfer and is returned.
  std::function<base::Result<void>(std::string_view)> sink;
};

struct Response {
  int status = 0;
  std::vector<Header> headers;  // names in lower case
  std::string body;

  bool ok() const { return status >= 200 && status < 300; }
  // The first header of that (lower-case) name, or "".
  std::string_view header(std::string_view name) const;
  std::optional<std::chrono::seconds> retry_after() const;  // whole seconds alone count
};

struct TransferInfo {
  bool sent = false;  // a byte of the request may have reached the server
};

struct ClientOptions {
  CaPaths ca = ca_paths_from_environment();
};

// Sends HTTP/1.1 requests over kept connections; TLS and proxies as libcurl does them.
//
// Redirects are not followed: a status 3xx comes back as it is. Bodies are asked for and taken as
// they are, without compression. When a server refuses an upload before it has read it, the
// answer is returned, not the error of the send.
// Owns:    its slots (one transfer and its connections each), at most kMaxTransfers.
// Threads: any; a transfer runs in the thread that called. No call may run when it is destroyed.
// Errors:  net.unreachable, net.tls, timeout.request (deadline or idle limit), cancelled, internal
//          (an answer beyond its limit is net.unreachable); a sink's own. Never a status.
// Source:  libcurl 7.88.1 documentation: multi interface, CURLOPT_EXPECT_100_TIMEOUT_MS,
//          CURLOPT_CLOSESOCKETFUNCTION. Programs must ignore SIGPIPE.
class HttpClient {
 public:
  explicit HttpClient(ClientOptions options = {});
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  base::Result<Response> perform(const Request& request, Deadline deadline, std::stop_token stop = {},
                                 TransferInfo* info = nullptr) EXCLUDES(mu_);

 private:
  struct Slot;
  base::Result<std::unique_ptr<Slot>> take_slot(const Request& request, Deadline deadline,
                                                const std::stop_token& stop) EXCLUDES(mu_);
  void give_back(std::unique_ptr<Slot> slot) EXCLUDES(mu_);

  const ClientOptions options_;
  base::Mutex mu_;  // rank: leaf
  base::CondVar free_;
  std::vector<std::unique_ptr<Slot>> idle_ GUARDED_BY(mu_);
  std::size_t busy_ GUARDED_BY(mu_) = 0;
};

}  // namespace nearbox::http
