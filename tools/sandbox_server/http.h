// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/base/log.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"

// A small HTTP/1.1 interface; what parses the bytes (Boost.Beast) stays behind it, in http_beast.cpp.
namespace nearbox::sandbox_server {

inline constexpr std::size_t kMaxHeaderBytes = 64 * 1024;
inline constexpr std::size_t kMaxJsonBody = 16 * 1024 * 1024;
// Body bytes read and thrown away after a reply, so that the connection can be used again.
inline constexpr std::size_t kMaxDrainBytes = 256 * 1024;
// How long that may take, and the reading after the last reply of a connection.
inline constexpr std::chrono::seconds kDrainTimeout{2};
inline constexpr std::size_t kIoChunk = 64 * 1024;
// Longer than any SDK keeps an idle connection, so that a reused one is never met half closed.
inline constexpr std::chrono::seconds kIdleTimeout{640};
// From the first byte of a request's head to its end.
inline constexpr std::chrono::seconds kHeaderTimeout{10};
// No byte moved for so long within a request or reply: the peer is gone.
inline constexpr std::chrono::minutes kStallTimeout{60};

// Header fields in order; names compare without regard to case.
class Headers {
 public:
  void add(std::string name, std::string value) { items_.emplace_back(std::move(name), std::move(value)); }
  void set(std::string name, std::string value) {
    remove(name);
    add(std::move(name), std::move(value));
  }
  void remove(std::string_view name);
  // The first value, or nothing.
  std::optional<std::string_view> get(std::string_view name) const;
  std::string_view value_or(std::string_view name, std::string_view other) const {
    return get(name).value_or(other);
  }
  bool has(std::string_view name) const { return get(name).has_value(); }
  const std::vector<std::pair<std::string, std::string>>& all() const { return items_; }

 private:
  std::vector<std::pair<std::string, std::string>> items_;
};

struct RequestHead {
  std::string method;
  std::string target;  // as sent: path and query
  std::string path;    // before '?', percent-decoded
  std::string query;   // after '?', as sent
  Headers headers;
  std::optional<std::uint64_t> content_length;
  bool chunked = false;
  bool upgrade = false;          // Connection: Upgrade
  bool expect_continue = false;  // Expect: 100-continue
  bool keep_alive = true;
  int minor_version = 1;
};

struct ResponseHead {
  int status = 0;
  std::string reason;
  Headers headers;
  std::optional<std::uint64_t> content_length;
  bool chunked = false;
};

std::string_view reason_of(int status);

// A connected socket with deadlines, woken by a stop descriptor. Reads and writes never raise SIGPIPE.
//
// Owns: the socket. Threads: one at a time.
// Errors: ETIMEDOUT after the time limit, ECANCELED once the stop descriptor is readable.
class SocketStream {
 public:
  SocketStream(base::UniqueFd fd, int stop_fd) : fd_(std::move(fd)), stop_fd_(stop_fd) {}
  int fd() const { return fd_.get(); }
  int stop_fd() const { return stop_fd_; }
  void set_timeout(std::chrono::milliseconds timeout) { timeout_ = timeout; }
  // An end to all reading and waiting, besides the timeout of each; nothing: no such end.
  void set_deadline(std::optional<std::chrono::steady_clock::time_point> deadline) { deadline_ = deadline; }

  base::Result<std::size_t> read_some(char* data, std::size_t size);  // 0: the peer closed
  base::Result<std::size_t> write_some(const char* data, std::size_t size);
  base::Result<void> write_all(std::string_view data);
  base::Result<void> wait(short events);
  // True once the peer has closed its side or the connection broke.
  bool peer_gone() const;

 private:
  base::UniqueFd fd_;
  int stop_fd_;
  std::chrono::milliseconds timeout_ = kStallTimeout;
  std::optional<std::chrono::steady_clock::time_point> deadline_;
};

// One request and its reply, valid during the handler's call.
//
// Threads: the handler's only, except for peer_gone().
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const RequestHead& head() const = 0;

  // The next body bytes, decoded; 0 at the end. Sends "100 Continue" first where it was asked for.
  virtual base::Result<std::size_t> read_body(char* data, std::size_t size) = 0;
  // The whole body; EMSGSIZE when it is longer than `limit`.
  base::Result<std::string> read_all(std::size_t limit);
  virtual bool body_done() const = 0;
  // True when body bytes are there already, without waiting.
  virtual bool body_buffered() const = 0;

  // A whole reply at once.
  base::Result<void> reply(int status, Headers headers, std::string_view body);
  // A reply in pieces: chunked where no length is given. Each write() leaves at once.
  virtual base::Result<void> start(int status, Headers headers, std::optional<std::uint64_t> length,
                                   std::string_view reason = {}) = 0;
  virtual base::Result<void> write(std::string_view data) = 0;
  virtual base::Result<void> finish() = 0;
  virtual bool started() const = 0;

  virtual SocketStream& stream() = 0;
  // Bytes read from the socket beyond this request, for a tunnel.
  virtual std::string take_buffered() = 0;
  // The connection ends after this exchange.
  virtual void close_after() = 0;
  // The handler wrote the reply to stream() by itself.
  virtual void mark_raw() = 0;
};

using Handler = std::function<void(Exchange&)>;

// Serves one connection until it ends. Called by HttpServer in a thread of its own.
// `idle` is told when the connection begins (true) and ends (false) to wait for a request.
void serve_connection(base::UniqueFd fd, int stop_fd, const Handler& handler,
                      const std::function<void(bool)>& idle, base::Logger& log);

// Reads one response from an upstream connection.
class ResponseReader {
 public:
  // `head_request`: the response has no body whatever its headers say.
  static std::unique_ptr<ResponseReader> make(SocketStream& stream, bool head_request);
  virtual ~ResponseReader() = default;
  virtual base::Result<ResponseHead> read_head() = 0;
  virtual base::Result<std::size_t> read_body(char* data, std::size_t size) = 0;
  virtual bool body_buffered() const = 0;
  virtual bool body_done() const = 0;
  virtual std::string take_buffered() = 0;
};

// Accepts connections and serves each in a thread of its own, up to a limit.
//
// Owns:    the listening socket and all threads; stop() (or the destructor) joins them.
// Threads: the handler runs on the connection's thread.
// Limits:  at `max_connections` the connection idle for longest gives way; when none is idle, 503.
class HttpServer {
 public:
  HttpServer(base::UniqueFd listener, std::size_t max_connections, Handler handler, base::Logger& log);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nearbox::sandbox_server
