// SPDX-License-Identifier: Apache-2.0
#include "client/channel/fd_carrier.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <climits>

namespace nearbox::channel {
namespace {

base::Result<void> make_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return base::last_errno("fcntl");
  return {};
}

// Milliseconds until `deadline` for poll(2), rounded up, so that no loop spins below one.
int poll_ms(Deadline deadline) {
  const auto left = deadline - std::chrono::steady_clock::now();
  if (left <= left.zero()) return 0;
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return static_cast<int>(std::min<std::int64_t>(ms, 3'600'000));
}

}  // namespace

base::Result<std::unique_ptr<FdCarrier>> FdCarrier::from_socket(base::UniqueFd socket) {
  if (auto done = make_nonblocking(socket.get()); !done) return std::move(done).error();
  base::UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return base::last_errno("eventfd");
  // Unix sockets answer ENOTSUP or the like: these options are only wishes.
  const int on = 1;
  (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kNotSentBytes, sizeof kNotSentBytes);
  return std::unique_ptr<FdCarrier>(
      new FdCarrier(std::move(socket), base::UniqueFd(), std::move(wake), true));
}

base::Result<std::unique_ptr<FdCarrier>> FdCarrier::from_pipes(base::UniqueFd in, base::UniqueFd out) {
  if (auto done = make_nonblocking(in.get()); !done) return std::move(done).error();
  if (auto done = make_nonblocking(out.get()); !done) return std::move(done).error();
  base::UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return base::last_errno("eventfd");
  return std::unique_ptr<FdCarrier>(new FdCarrier(std::move(in), std::move(out), std::move(wake), false));
}

base::Result<void> FdCarrier::wait(int fd, short events, Deadline deadline) {
  pollfd fds[2] = {{fd, events, 0}, {wake_.get(), POLLIN, 0}};
  while (true) {
    const int n = ::poll(fds, 2, poll_ms(deadline));
    if (stopped_.load(std::memory_order_acquire)) return base::errno_error(ECONNABORTED);
    if (n > 0) return {};
    if (n < 0 && errno != EINTR) return base::last_errno("poll");
    if (std::chrono::steady_clock::now() >= deadline) return base::errno_error(ETIMEDOUT);
  }
}

base::Result<std::size_t> FdCarrier::read(std::span<std::byte> into, Deadline deadline) {
  while (true) {
    if (stopped_.load(std::memory_order_acquire)) return base::errno_error(ECONNABORTED);
    const ssize_t n = ::read(in_.get(), into.data(), into.size());
    if (n >= 0) return static_cast<std::size_t>(n);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return base::last_errno("read");
    if (auto ready = wait(in_.get(), POLLIN, deadline); !ready) return std::move(ready).error();
  }
}

base::Result<void> FdCarrier::write(wire::ByteView bytes, Deadline deadline) {
  while (!bytes.empty()) {
    if (stopped_.load(std::memory_order_acquire)) return base::errno_error(ECONNABORTED);
    // With TCP_NOTSENT_LOWAT the kernel takes a write whole as long as its buffer has room; only
    // poll(2) tells when little is unsent.
    if (auto ready = wait(out_fd(), POLLOUT, deadline); !ready) return ready;
    const ssize_t n = socket_ ? ::send(out_fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT)
                              : ::write(out_fd(), bytes.data(), bytes.size());
    if (n >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
    } else if (errno != EAGAIN && errno != EINTR) {
      return base::last_errno("write");
    }
  }
  return {};
}

void FdCarrier::shutdown() noexcept {
  stopped_.store(true, std::memory_order_release);
  const std::uint64_t one = 1;
  while (::write(wake_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

}  // namespace nearbox::channel
