// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/http/fault_server.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cstdlib>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <utility>

namespace nearbox::test {
namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

sockaddr* as_sockaddr(sockaddr_in& address) { return static_cast<sockaddr*>(static_cast<void*>(&address)); }

}  // namespace

bool FaultConnection::read_raw(std::string& into, std::size_t count) {
  while (buffer_.size() < count) {
    char chunk[16 * 1024];
    const ssize_t n = ::recv(fd_, chunk, sizeof chunk, 0);
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<std::size_t>(n));
  }
  into = buffer_.substr(0, count);
  buffer_.erase(0, count);
  return true;
}

bool FaultConnection::read_some(std::string& into) {
  if (buffer_.empty()) {
    char chunk[16 * 1024];
    const ssize_t n = ::recv(fd_, chunk, sizeof chunk, 0);
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<std::size_t>(n));
  }
  into = std::exchange(buffer_, {});
  return true;
}

bool FaultConnection::read_head(FaultRequest& into) {
  std::size_t end = 0;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    char chunk[16 * 1024];
    const ssize_t n = ::recv(fd_, chunk, sizeof chunk, 0);
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<std::size_t>(n));
  }
  const std::string head = buffer_.substr(0, end + 2);
  buffer_.erase(0, end + 4);
  std::size_t at = head.find("\r\n");
  const std::string line = head.substr(0, at);
  const auto first = line.find(' '), second = line.rfind(' ');
  into.method = line.substr(0, first);
  into.target = line.substr(first + 1, second - first - 1);
  while (at + 2 < head.size()) {
    const auto next = head.find("\r\n", at + 2);
    const std::string header = head.substr(at + 2, next - at - 2);
    const auto colon = header.find(':');
    into.headers[lower(header.substr(0, colon))] = header.substr(header.find_first_not_of(' ', colon + 1));
    at = next;
  }
  return true;
}

bool FaultConnection::read_body(FaultRequest& into, bool send_continue) {
  if (send_continue && !into.header("expect").empty() && !send("HTTP/1.1 100 Continue\r\n\r\n")) return false;
  const std::string length = into.header("content-length");
  return length.empty() || read_raw(into.body, std::stoull(length));
}

bool FaultConnection::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

bool FaultConnection::respond(int status, std::string_view body, std::string_view extra_headers) {
  std::string text = "HTTP/1.1 " + std::to_string(status) + " Some Text\r\n";
  text += extra_headers;
  if (status != 204) text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  text += "\r\n";
  text += body;
  return send(text);
}

void FaultConnection::reset() {
  const linger hard{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
}

FaultServer::FaultServer(Handler handler) : handler_(std::move(handler)) {
  // A proxy of the machine is none of the tests' business.
  for (const char* name : {"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"})
    ::unsetenv(name);
  listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (::bind(listener_.get(), as_sockaddr(address), size) != 0 || ::listen(listener_.get(), 64) != 0 ||
      ::getsockname(listener_.get(), as_sockaddr(address), &size) != 0) {
    std::abort();
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::jthread([this](const std::stop_token& stop) { accept_loop(stop); });
}

FaultServer::~FaultServer() {
  acceptor_.request_stop();
  ::shutdown(listener_.get(), SHUT_RDWR);
  acceptor_.join();
  std::vector<std::jthread> workers;
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    workers.swap(workers_);
  }
}

void FaultServer::accept_loop(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    ++connections_;
    base::MutexLock lock(mu_);
    open_.push_back(fd);
    workers_.emplace_back([this, fd] { serve(fd); });
  }
}

void FaultServer::serve(int fd) {
  FaultConnection connection(fd);
  FaultRequest request;
  while (connection.read_head(request)) {
    ++requests_;
    if (!handler_(connection, request)) break;
    request = FaultRequest{};
  }
  base::MutexLock lock(mu_);
  open_.erase(std::find(open_.begin(), open_.end(), fd));
  ::close(fd);
}

}  // namespace nearbox::test
