// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/control.h"

#include <algorithm>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace nearbox::daemon {
namespace {

// Waits for `events` on `fd`; false at the deadline.
bool wait_for(int fd, short events, Deadline deadline) {
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd p{fd, events, 0};
    const int timeout = static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 3'600'000));
    const int n = ::poll(&p, 1, timeout);
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) return true;  // the read or write will say what is wrong
    if (n == 0 && left.count() <= 3'600'000) return false;
  }
}

base::Result<sockaddr_un> address(const std::string& path) {
  sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  if (path.size() >= sizeof addr.sun_path) return base::errno_error(ENAMETOOLONG, "socket " + path);
  std::memcpy(addr.sun_path, path.c_str(), path.size() + 1);
  return addr;
}

}  // namespace

base::Result<void> ControlConnection::read_all(char* into, std::size_t size, Deadline deadline) {
  while (size > 0) {
    if (!wait_for(fd_.get(), POLLIN, deadline)) return base::errno_error(ETIMEDOUT, "daemon connection");
    const ssize_t n = ::recv(fd_.get(), into, size, MSG_DONTWAIT);
    if (n == 0) return base::errno_error(ECONNRESET, "daemon connection");
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return base::last_errno("daemon connection");
    into += n;
    size -= static_cast<std::size_t>(n);
  }
  return {};
}

base::Result<ControlFrame> ControlConnection::read(Deadline deadline) {
  char head[5];
  if (auto r = read_all(head, sizeof head, deadline); !r) return std::move(r).error();
  std::uint32_t length = 0;
  std::memcpy(&length, head, 4);
  if (length > kMaxControlFrame) return base::errno_error(EPROTO, "daemon connection: frame too large");
  ControlFrame frame;
  frame.type = static_cast<ControlType>(head[4]);
  frame.payload.resize(length);
  if (auto r = read_all(frame.payload.data(), length, deadline); !r) return std::move(r).error();
  return frame;
}

base::Result<void> ControlConnection::write(ControlType type, std::string_view payload, Deadline deadline) {
  std::string bytes(5, '\0');
  const auto length = static_cast<std::uint32_t>(payload.size());
  std::memcpy(bytes.data(), &length, 4);
  bytes[4] = static_cast<char>(type);
  bytes += payload;
  base::MutexLock lock(write_mu_);
  std::string_view left = bytes;
  while (!left.empty()) {
    const ssize_t n = ::send(fd_.get(), left.data(), left.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      left.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      if (!wait_for(fd_.get(), POLLOUT, deadline)) return base::errno_error(ETIMEDOUT, "daemon connection");
    } else if (errno != EINTR) {
      return base::last_errno("daemon connection");
    }
  }
  return {};
}

base::Result<void> ControlConnection::write_json(const nlohmann::json& value, Deadline deadline) {
  // Names may hold any bytes: those that are no UTF-8 are shown as U+FFFD.
  return write(ControlType::kJson, value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
               deadline);
}

base::Result<nlohmann::json> ControlConnection::read_json(Deadline deadline) {
  auto frame = read(deadline);
  if (!frame) return std::move(frame).error();
  if (frame->type != ControlType::kJson) return base::errno_error(EPROTO, "daemon connection: not JSON");
  return parse_json(frame->payload);
}

void ControlConnection::shutdown() noexcept { ::shutdown(fd_.get(), SHUT_RDWR); }

base::Result<nlohmann::json> parse_json(std::string_view text) {
  auto value = nlohmann::json::parse(text, nullptr, false);
  if (value.is_discarded()) return base::errno_error(EPROTO, "not JSON");
  return value;
}

base::Result<base::UniqueFd> connect_unix(const std::string& path) {
  auto addr = address(path);
  if (!addr) return std::move(addr).error();
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return base::last_errno("socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*addr), sizeof *addr) != 0) {
    return base::last_errno("connect " + path);
  }
  return fd;
}

base::Result<base::UniqueFd> listen_unix(const std::string& path) {
  auto addr = address(path);
  if (!addr) return std::move(addr).error();
  base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return base::last_errno("socket");
  (void)::unlink(path.c_str());
  const mode_t old = ::umask(0177);
  const int bound = ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&*addr), sizeof *addr);
  const int err = errno;
  ::umask(old);
  if (bound != 0) return base::errno_error(err, "bind " + path);
  if (::listen(fd.get(), 64) != 0) return base::last_errno("listen " + path);
  return fd;
}

}  // namespace nearbox::daemon
