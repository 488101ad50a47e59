// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/listener.h"

#include <arpa/inet.h>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <system_error>
#include <unistd.h>

namespace nearbox::agent {
namespace {

constexpr int kBacklog = 128;
constexpr int kPollStep = 60'000;  // ms
constexpr int kBreath = 50;        // ms without accepting when descriptors have run out

template <class Address>
const struct sockaddr* generic(const Address& address) {
  return reinterpret_cast<const struct sockaddr*>(&address);
}

}  // namespace

base::Result<std::unique_ptr<Listener>> Listener::tcp(std::uint16_t port, base::Logger& log) {
  base::UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return base::last_errno("socket");
  const int on = 1;
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  struct sockaddr_in address {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  // On E2B the proxy reaches the sandbox's own address. Where a sandbox shares its host's network (the
  // embedded server), the variable keeps the port off the host's other interfaces.
  if (const char* given = std::getenv("NEARBOX_AGENT_BIND"); given != nullptr && *given != '\0') {
    if (::inet_pton(AF_INET, given, &address.sin_addr) != 1) {
      return base::errno_error(EINVAL, "NEARBOX_AGENT_BIND is no IPv4 address");
    }
  }
  if (::bind(socket.get(), generic(address), sizeof address) != 0) return base::last_errno("bind");
  if (::listen(socket.get(), kBacklog) != 0) return base::last_errno("listen");
  socklen_t size = sizeof address;
  if (::getsockname(socket.get(), reinterpret_cast<struct sockaddr*>(&address), &size) != 0) {
    return base::last_errno("getsockname");
  }
  std::unique_ptr<Listener> listener(new Listener(std::move(socket), {}, log));
  listener->port_ = ntohs(address.sin_port);
  return listener;
}

base::Result<std::unique_ptr<Listener>> Listener::local(const std::string& path, base::Logger& log) {
  struct sockaddr_un address {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return base::errno_error(EINVAL, "socket path " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size());
  base::UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return base::last_errno("socket");
  (void)::unlink(path.c_str());  // the caller holds the lock of a running agent
  if (::bind(socket.get(), generic(address), sizeof address) != 0) return base::last_errno("bind " + path);
  if (::listen(socket.get(), kBacklog) != 0) return base::last_errno("listen");
  return std::unique_ptr<Listener>(new Listener(std::move(socket), path, log));
}

Listener::~Listener() {
  stop();
  if (!path_.empty()) (void)::unlink(path_.c_str());
}

base::Result<void> Listener::start(Agent& agent, CarrierMaker make) {
  agent_ = &agent;
  make_ = std::move(make);
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) return base::last_errno("eventfd");
  try {
    thread_ = std::jthread([this] { run(); });
  } catch (const std::system_error& error) {
    return base::errno_error(error.code().value(), "thread");
  }
  return {};
}

void Listener::stop() {
  stopping_.store(true);
  if (wake_) (void)::eventfd_write(wake_.get(), 1);
  if (thread_.joinable()) thread_.join();
  std::list<Connection> all;
  {
    base::MutexLock lock(mu_);
    all.splice(all.end(), connections_);
  }
  for (auto& connection : all) (void)::shutdown(connection.wake.get(), SHUT_RDWR);
  all.clear();  // joins
}

void Listener::run() noexcept {
  pthread_setname_np(pthread_self(), "listener");
  while (!stopping_.load()) {
    struct pollfd wait[2] = {{wake_.get(), POLLIN, 0}, {socket_.get(), POLLIN, 0}};
    const bool ready = ::poll(wait, 2, kPollStep) > 0;
    if (ready && (wait[0].revents & POLLIN) != 0) {
      eventfd_t count = 0;
      (void)::eventfd_read(wake_.get(), &count);
    }
    if (ready && (wait[1].revents & POLLIN) != 0 && !stopping_.load()) accept_one();
    std::list<Connection> finished;
    base::MutexLock lock(mu_);
    for (auto it = connections_.begin(); it != connections_.end();) {
      const auto next = std::next(it);
      if (it->finished.load()) finished.splice(finished.end(), connections_, it);
      it = next;
    }
    finished.clear();  // joins threads at their last instruction
  }
}

bool Listener::peer_allowed(int socket) const {
  if (path_.empty()) return true;
  struct ucred peer {};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  return peer.uid == ::geteuid() || peer.uid == 0;
}

// When there are as many strangers as may be.
void Listener::break_oldest_stranger() {
  Connection* oldest = nullptr;
  std::size_t strangers = 0;
  for (auto& connection : connections_) {
    if (connection.broken || connection.known.load() || connection.finished.load()) continue;
    ++strangers;
    if (oldest == nullptr) oldest = &connection;
  }
  if (strangers < kMaxStrangers) return;
  oldest->broken = true;
  (void)::shutdown(oldest->wake.get(), SHUT_RDWR);
  log_.warn("event=stranger_dropped why=\"too many connections without a hello\"");
}

void Listener::accept_one() {
  base::UniqueFd socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket) {
    if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS) return;
    struct pollfd wait {
      wake_.get(), POLLIN, 0
    };
    (void)::poll(&wait, 1, kBreath);
    return;
  }
  if (!peer_allowed(socket.get())) {
    log_.warn("event=refused why=\"peer of another user\"");
    return;
  }
  base::MutexLock lock(mu_);
  break_oldest_stranger();
  if (connections_.size() >= kMaxConnections) {
    log_.warn("event=refused why=\"too many connections\"");
    return;
  }
  Connection& connection = connections_.emplace_back();
  connection.wake.reset(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0));
  try {
    connection.thread =
        std::jthread([this, &connection, owned = std::make_shared<base::UniqueFd>(std::move(socket))] {
          serve(connection, std::move(*owned));
        });
  } catch (const std::system_error&) {
    connections_.pop_back();
    log_.error("event=no_thread");
  }
}

void Listener::serve(Connection& connection, base::UniqueFd socket) noexcept {
  pthread_setname_np(pthread_self(), "connection");
  const auto deadline = std::chrono::steady_clock::now() + kAcceptTimeout;
  auto carrier = make_(std::move(socket), deadline);
  if (carrier) {
    agent_->serve(
        **carrier, [&] { connection.known.store(true); }, deadline);
  } else {
    log_.info("event=no_carrier error=\"" + carrier.error().message() + "\"");
  }
  (void)::shutdown(connection.wake.get(), SHUT_RDWR);  // the duplicate keeps the socket open else
  connection.finished.store(true);
  if (wake_) (void)::eventfd_write(wake_.get(), 1);
}

}  // namespace nearbox::agent
