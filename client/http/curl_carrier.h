// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <stop_token>
#include <string>

#include "client/base/mutex.h"
#include "client/base/unique_fd.h"
#include "client/channel/carrier.h"
#include "client/http/curl_util.h"

namespace nearbox::http {

inline constexpr int kNotSentLowat = 128 * 1024;         // little unsent data below us: small before bulk
inline constexpr std::size_t kCarrierPiece = 32 * 1024;  // of one locked send

// A TCP or TLS connection that libcurl made (through proxies, if need be), as raw bytes.
//
// ALPN offers http/1.1 alone: an HTTP/2 connection would be of no use for raw bytes.
// Owns:    the curl handle, its connection, an eventfd.
// Threads: as Carrier; mu_ (leaf) is around each call into libcurl and never held while waiting.
// Source:  libcurl 7.88.1: CURLOPT_CONNECT_ONLY, curl_easy_send, curl_easy_recv (both non-blocking;
//          what TLS has buffered is only seen by asking again, hence recv before poll).
class CurlCarrier final : public channel::Carrier {
 public:
  // Connects to the host of an http(s) URL. Errors: net.unreachable, net.tls, timeout.request, cancelled.
  static base::Result<std::unique_ptr<CurlCarrier>> connect(const std::string& url,
                                                            channel::Deadline deadline,
                                                            std::stop_token stop = {},
                                                            const CaPaths& ca = ca_paths_from_environment());
  ~CurlCarrier() override;
  CurlCarrier(const CurlCarrier&) = delete;
  CurlCarrier& operator=(const CurlCarrier&) = delete;

  base::Result<std::size_t> read(std::span<std::byte> into, channel::Deadline deadline) override
      EXCLUDES(mu_);
  base::Result<void> write(wire::ByteView bytes, channel::Deadline deadline) override EXCLUDES(mu_);
  void shutdown() noexcept override;

 private:
  CurlCarrier(CURL* easy, int socket, base::UniqueFd wake);
  // Waits until the socket is ready for `events`. ETIMEDOUT, ECONNABORTED.
  base::Result<void> wait(short events, channel::Deadline deadline);

  base::Mutex mu_;
  CURL* const easy_;  // guarded by mu_, but for the destructor
  const int socket_;  // belongs to easy_
  const base::UniqueFd wake_;
  std::atomic<bool> shut_{false};
};

}  // namespace nearbox::http
