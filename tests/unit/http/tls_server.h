// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <string>
#include <thread>

#include "client/base/unique_fd.h"

namespace nearbox::test {

// Echoes bytes over TLS on a loopback port, one connection after another, with a certificate of its
// own for `name`. It would choose h2 if the client offered it.
class TlsEchoServer {
 public:
  explicit TlsEchoServer(const std::string& name = "localhost");
  ~TlsEchoServer();
  TlsEchoServer(const TlsEchoServer&) = delete;
  TlsEchoServer& operator=(const TlsEchoServer&) = delete;

  std::string url() const { return "https://localhost:" + std::to_string(port_); }
  const std::string& ca_file() const { return ca_file_; }
  bool saw_http11() const { return saw_http11_.load(); }

 private:
  struct Tls;
  void run(const std::stop_token& stop);
  void serve(int fd);

  Tls* tls_;
  base::UniqueFd listener_;
  int port_ = 0;
  std::string ca_file_;
  std::atomic<bool> saw_http11_{false};
  std::atomic<int> client_{-1};
  std::jthread thread_;
};

}  // namespace nearbox::test
