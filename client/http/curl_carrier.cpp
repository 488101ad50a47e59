// SPDX-License-Identifier: Apache-2.0
#include "client/http/curl_carrier.h"

#include <algorithm>
#include <cerrno>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "client/api/error_code.h"

namespace nearbox::http {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kLongestWait{60'000};  // of one poll; then the deadline is looked at again
constexpr milliseconds kLongestConnect{60'000};

milliseconds left_until(channel::Deadline deadline) {
  return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
}

int set_socket_options(void*, curl_socket_t fd, curlsocktype) noexcept {
  const int on = 1;
  const int lowat = kNotSentLowat;
  // Neither is needed for correctness.
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  (void)::setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof lowat);
  return CURL_SOCKOPT_OK;
}

// Called about once a second while connecting.
int on_progress(void* stop, curl_off_t, curl_off_t, curl_off_t, curl_off_t) noexcept {
  return static_cast<const std::stop_token*>(stop)->stop_requested() ? 1 : 0;
}

void prepare(CURL* easy, const std::string& url, milliseconds timeout, std::stop_token* stop,
             const CaPaths& ca, char* error) {
  curl_easy_setopt(easy, CURLOPT_URL, url.c_str());
  curl_easy_setopt(easy, CURLOPT_CONNECT_ONLY, 1L);
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(easy, CURLOPT_HTTPPROXYTUNNEL, 1L);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_USERAGENT, "nearbox/" NEARBOX_VERSION);
  curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(std::max<std::int64_t>(timeout.count(), 1)));
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(std::max<std::int64_t>(timeout.count(), 1)));
  curl_easy_setopt(easy, CURLOPT_SOCKOPTFUNCTION, &set_socket_options);
  curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, &on_progress);
  curl_easy_setopt(easy, CURLOPT_XFERINFODATA, stop);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error);
  apply_ca_paths(easy, ca);
  apply_proxy_rules(easy, url);
}

base::Error io_error(CURLcode code, const char* what) {
  switch (code) {
    case CURLE_SEND_ERROR:
      return base::errno_error(EPIPE, what);
    case CURLE_RECV_ERROR:
      return base::errno_error(ECONNRESET, what);
    case CURLE_UNSUPPORTED_PROTOCOL:
      return base::errno_error(ENOTCONN, what);
    default:
      return base::errno_error(EIO, std::string(what) + ": " + curl_easy_strerror(code));
  }
}

}  // namespace

base::Result<std::unique_ptr<CurlCarrier>> CurlCarrier::connect(const std::string& url,
                                                                channel::Deadline deadline,
                                                                std::stop_token stop, const CaPaths& ca) {
  global_init();
  if (!is_plain_url(url)) {
    return api::fill_error(api::ErrorCode::kArgInvalid,
                           {{"NAME", "address"}, {"WHY", "it is no plain http(s) address"}});
  }
  const auto started = steady_clock::now();
  base::UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return base::last_errno("eventfd");
  std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> easy(curl_easy_init(), &curl_easy_cleanup);
  if (!easy) return base::errno_error(ENOMEM, "connect to " + host_of(url));
  char text[CURL_ERROR_SIZE] = {};
  prepare(easy.get(), url, std::min(left_until(deadline), kLongestConnect), &stop, ca, text);
  const CURLcode code = curl_easy_perform(easy.get());
  // They point at what ends with this call.
  curl_easy_setopt(easy.get(), CURLOPT_ERRORBUFFER, nullptr);
  curl_easy_setopt(easy.get(), CURLOPT_NOPROGRESS, 1L);
  curl_easy_setopt(easy.get(), CURLOPT_XFERINFODATA, nullptr);
  if (code != CURLE_OK) {
    return curl_error(code, url, text, std::chrono::ceil<milliseconds>(steady_clock::now() - started));
  }
  curl_socket_t socket = CURL_SOCKET_BAD;
  if (curl_easy_getinfo(easy.get(), CURLINFO_ACTIVESOCKET, &socket) != CURLE_OK ||
      socket == CURL_SOCKET_BAD) {
    return base::errno_error(ENOTCONN, "connect to " + host_of(url));
  }
  return std::unique_ptr<CurlCarrier>(new CurlCarrier(easy.release(), socket, std::move(wake)));
}

CurlCarrier::CurlCarrier(CURL* easy, int socket, base::UniqueFd wake)
    : easy_(easy), socket_(socket), wake_(std::move(wake)) {}

CurlCarrier::~CurlCarrier() { curl_easy_cleanup(easy_); }

base::Result<void> CurlCarrier::wait(short events, channel::Deadline deadline) {
  for (;;) {
    if (shut_.load()) return base::errno_error(ECONNABORTED, "connection was shut down");
    const milliseconds left = left_until(deadline);
    pollfd fds[2] = {{socket_, events, 0}, {wake_.get(), POLLIN, 0}};
    const int n = ::poll(fds, 2, static_cast<int>(std::min(left, kLongestWait).count()));
    if (n < 0 && errno != EINTR) return base::last_errno("wait for the connection");
    if (n > 0 && fds[1].revents == 0) return {};
    if (n <= 0 && left.count() == 0) return base::errno_error(ETIMEDOUT, "wait for the connection");
  }
}

base::Result<std::size_t> CurlCarrier::read(std::span<std::byte> into, channel::Deadline deadline) {
  for (;;) {
    if (shut_.load()) return base::errno_error(ECONNABORTED, "connection was shut down");
    std::size_t got = 0;
    CURLcode code = CURLE_OK;
    {
      base::MutexLock lock(mu_);
      code = curl_easy_recv(easy_, into.data(), into.size(), &got);
    }
    if (code == CURLE_OK) return got;
    if (code != CURLE_AGAIN) return io_error(code, "read from the connection");
    if (auto ready = wait(POLLIN, deadline); !ready) return std::move(ready).error();
  }
}

base::Result<void> CurlCarrier::write(wire::ByteView bytes, channel::Deadline deadline) {
  while (!bytes.empty()) {
    // With TCP_NOTSENT_LOWAT the kernel takes a write whole as long as its buffer has room; only
    // poll(2) tells when little is unsent.
    if (auto ready = wait(POLLOUT, deadline); !ready) return ready;
    std::size_t sent = 0;
    CURLcode code = CURLE_OK;
    {
      base::MutexLock lock(mu_);
      code = curl_easy_send(easy_, bytes.data(), std::min(bytes.size(), kCarrierPiece), &sent);
    }
    if (code != CURLE_OK && code != CURLE_AGAIN) return io_error(code, "write to the connection");
    // A second try after CURLE_AGAIN has the same bytes, as TLS demands.
    bytes = bytes.subspan(code == CURLE_OK ? sent : 0);
  }
  return {};
}

void CurlCarrier::shutdown() noexcept {
  shut_.store(true);
  const std::uint64_t one = 1;
  // Never read: it stays readable, for every waiter. Full (EAGAIN) is readable too.
  if (::write(wake_.get(), &one, sizeof one) < 0) return;
}

}  // namespace nearbox::http
