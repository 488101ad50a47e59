// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/unique_fd.h"

namespace nearbox::test {

struct FaultRequest {
  std::string method;
  std::string target;                          // path and query
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;

  std::string header(const std::string& name) const {
    const auto it = headers.find(name);
    return it == headers.end() ? "" : it->second;
  }
};

// One connection, as a handler sees it: it may answer properly, wrongly or not at all.
class FaultConnection {
 public:
  explicit FaultConnection(int fd) : fd_(fd) {}
  // Reads the head of a request. False: the client closed.
  bool read_head(FaultRequest& into);
  // Reads the body (Content-Length; answers Expect first when told to). False: it was cut.
  bool read_body(FaultRequest& into, bool send_continue = true);
  bool send(std::string_view bytes);
  // A whole answer.
  bool respond(int status, std::string_view body, std::string_view extra_headers = "");
  void reset();  // RST instead of FIN
  bool read_raw(std::string& into, std::size_t count);
  bool read_some(std::string& into);  // what is there, at least a byte
  int fd() const { return fd_; }

 private:
  int fd_;
  std::string buffer_;
};

// An HTTP server on a free loopback port that does what its handler does. A handler is called once
// a request, with the head read, and answers whether the connection goes on.
//
// Threads: one accepts, one a connection; all joined by the destructor.
class FaultServer {
 public:
  using Handler = std::function<bool(FaultConnection&, FaultRequest&)>;
  explicit FaultServer(Handler handler);
  ~FaultServer();
  FaultServer(const FaultServer&) = delete;
  FaultServer& operator=(const FaultServer&) = delete;

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }
  std::size_t connections() const { return connections_.load(); }
  std::size_t requests() const { return requests_.load(); }

 private:
  void accept_loop(const std::stop_token& stop);
  void serve(int fd);

  Handler handler_;
  base::UniqueFd listener_;
  int port_ = 0;
  std::atomic<std::size_t> connections_{0}, requests_{0};
  base::Mutex mu_;
  std::vector<int> open_ GUARDED_BY(mu_);
  std::vector<std::jthread> workers_ GUARDED_BY(mu_);
  bool stopping_ GUARDED_BY(mu_) = false;
  std::jthread acceptor_;
};

}  // namespace nearbox::test
