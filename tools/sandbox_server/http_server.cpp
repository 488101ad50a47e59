// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <list>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <system_error>
#include <thread>

#include "client/base/mutex.h"
#include "tools/sandbox_server/http.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {

void Headers::remove(std::string_view name) {
  items_.erase(std::remove_if(items_.begin(), items_.end(),
                              [&](const auto& item) { return iequals(item.first, name); }),
               items_.end());
}

std::optional<std::string_view> Headers::get(std::string_view name) const {
  for (const auto& [key, value] : items_) {
    if (iequals(key, name)) return value;
  }
  return std::nullopt;
}

std::string_view reason_of(int status) {
  switch (status) {
    case 101:
      return "Switching Protocols";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 406:
      return "Not Acceptable";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 412:
      return "Precondition Failed";
    case 413:
      return "Payload Too Large";
    case 415:
      return "Unsupported Media Type";
    case 416:
      return "Range Not Satisfiable";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 507:
      return "Insufficient Storage";
    default:
      return "Status";
  }
}

base::Result<void> SocketStream::wait(short events) {
  pollfd fds[2] = {{fd_.get(), events, 0}, {stop_fd_, POLLIN, 0}};
  auto deadline = std::chrono::steady_clock::now() + timeout_;
  if (deadline_) deadline = std::min(deadline, *deadline_);
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return base::errno_error(ETIMEDOUT, "socket");
    const int ready = ::poll(fds, stop_fd_ >= 0 ? 2 : 1, static_cast<int>(left.count()));
    if (ready < 0 && errno != EINTR) return base::last_errno("poll");
    if (ready <= 0) continue;
    if (stop_fd_ >= 0 && fds[1].revents != 0) return base::errno_error(ECANCELED, "server is stopping");
    return {};
  }
}

base::Result<std::size_t> SocketStream::read_some(char* data, std::size_t size) {
  while (true) {
    if (deadline_ && std::chrono::steady_clock::now() >= *deadline_)
      return base::errno_error(ETIMEDOUT, "socket");
    const auto got = ::recv(fd_.get(), data, size, MSG_DONTWAIT);
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return base::last_errno("recv");
    if (auto ready = wait(POLLIN); !ready) return std::move(ready).error();
  }
}

base::Result<std::size_t> SocketStream::write_some(const char* data, std::size_t size) {
  while (true) {
    const auto sent = ::send(fd_.get(), data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<std::size_t>(sent);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return base::last_errno("send");
    if (auto ready = wait(POLLOUT); !ready) return std::move(ready).error();
  }
}

base::Result<void> SocketStream::write_all(std::string_view data) {
  while (!data.empty()) {
    const auto sent = write_some(data.data(), data.size());
    if (!sent) return sent.error();
    data.remove_prefix(*sent);
  }
  return {};
}

bool SocketStream::peer_gone() const {
  pollfd fds[2] = {{fd_.get(), POLLRDHUP, 0}, {stop_fd_, POLLIN, 0}};
  if (::poll(fds, stop_fd_ >= 0 ? 2 : 1, 0) <= 0) return false;
  return (fds[0].revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0 ||
         (stop_fd_ >= 0 && fds[1].revents != 0);
}

base::Result<std::string> Exchange::read_all(std::size_t limit) {
  std::string out;
  std::string chunk(kIoChunk, '\0');
  if (head().content_length && *head().content_length > limit) return base::errno_error(EMSGSIZE, "body");
  while (true) {
    const auto got = read_body(chunk.data(), chunk.size());
    if (!got) return got.error();
    if (*got == 0) return out;
    if (out.size() + *got > limit) return base::errno_error(EMSGSIZE, "body");
    out.append(chunk.data(), *got);
  }
}

base::Result<void> Exchange::reply(int status, Headers headers, std::string_view body) {
  if (auto begun = start(status, std::move(headers), body.size(), {}); !begun) return begun;
  if (auto sent = write(body); !sent) return sent;
  return finish();
}

struct HttpServer::Impl {
  struct Connection {
    int fd = -1;
    std::chrono::steady_clock::time_point idle_since{};
    bool idle = false;
    bool evicted = false;
    bool done = false;
    std::jthread thread;
  };

  Impl(base::UniqueFd listen_fd, std::size_t max, Handler h, base::Logger& l)
      : listener(std::move(listen_fd)),
        stop_event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        max_connections(max),
        handler(std::move(h)),
        log(l) {}

  void accept_loop() noexcept;
  void take(base::UniqueFd fd);
  void reap();
  bool make_room();

  base::UniqueFd listener;
  base::UniqueFd stop_event;
  const std::size_t max_connections;
  const Handler handler;
  base::Logger& log;
  base::Mutex mu;  // leaf; never held across I/O
  std::list<Connection> connections GUARDED_BY(mu);
  std::jthread acceptor;  // last: it uses the others
};

void HttpServer::Impl::accept_loop() noexcept {
  pthread_setname_np(pthread_self(), "http-accept");
  while (true) {
    pollfd fds[2] = {{listener.get(), POLLIN, 0}, {stop_event.get(), POLLIN, 0}};
    constexpr int kReapEveryMs = 1000;
    const int ready = ::poll(fds, 2, kReapEveryMs);
    if (fds[1].revents != 0) return;
    try {
      reap();
      if (ready <= 0 || fds[0].revents == 0) continue;
      base::UniqueFd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (fd) take(std::move(fd));
    } catch (const std::exception& e) {
      log.error(std::string("http accept failed error=") + e.what());
    }
  }
}

void HttpServer::Impl::take(base::UniqueFd fd) {
  const int on = 1;
  (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (!make_room()) {
    static constexpr std::string_view kBusy =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: "
        "0\r\n\r\n";
    (void)::send(fd.get(), kBusy.data(), kBusy.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    log.warn("http refused a connection reason=limit");
    return;
  }
  base::MutexLock lock(mu);
  auto& entry = connections.emplace_back();
  entry.fd = fd.get();
  auto* self = &entry;
  auto work = [this, self, socket = std::move(fd)]() mutable noexcept {
    pthread_setname_np(pthread_self(), "http");
    serve_connection(
        std::move(socket), stop_event.get(), handler,
        [this, self](bool idle) {
          base::MutexLock guard(mu);
          self->idle = idle;
          self->idle_since = std::chrono::steady_clock::now();
        },
        log);
    base::MutexLock guard(mu);
    self->done = true;
  };
  try {
    entry.thread = std::jthread(std::move(work));
  } catch (const std::system_error& e) {
    connections.pop_back();  // nobody would ever mark it done
    log.error(std::string("http refused a connection reason=thread error=") + e.what());
  }
}

void HttpServer::Impl::reap() {
  std::list<Connection> finished;
  {
    base::MutexLock lock(mu);
    for (auto it = connections.begin(); it != connections.end();) {
      const auto next = std::next(it);
      if (it->done) finished.splice(finished.end(), connections, it);
      it = next;
    }
  }
  // Joined here, without the lock: the threads are at their very end.
}

bool HttpServer::Impl::make_room() {
  base::MutexLock lock(mu);
  std::size_t living = 0;
  Connection* oldest = nullptr;
  for (auto& entry : connections) {
    if (entry.done || entry.evicted) continue;
    ++living;
    if (entry.idle && (oldest == nullptr || entry.idle_since < oldest->idle_since)) oldest = &entry;
  }
  if (living < max_connections) return true;
  if (oldest == nullptr) return false;
  // Its thread owns the descriptor and has it open still: idle means that it waits for a request.
  oldest->evicted = true;
  (void)::shutdown(oldest->fd, SHUT_RDWR);
  return true;
}

HttpServer::HttpServer(base::UniqueFd listener, std::size_t max_connections, Handler handler,
                       base::Logger& log)
    : impl_(std::make_unique<Impl>(std::move(listener), max_connections, std::move(handler), log)) {
  impl_->acceptor = std::jthread([impl = impl_.get()]() noexcept { impl->accept_loop(); });
}

HttpServer::~HttpServer() { stop(); }

void HttpServer::stop() {
  const std::uint64_t one = 1;
  (void)!::write(impl_->stop_event.get(), &one, sizeof one);
  if (impl_->acceptor.joinable()) impl_->acceptor.join();
  std::list<Impl::Connection> ending;
  {
    base::MutexLock lock(impl_->mu);
    ending.swap(impl_->connections);
  }
  ending.clear();
  impl_->listener.reset();
}

}  // namespace nearbox::sandbox_server
