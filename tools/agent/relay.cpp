// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/relay.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

namespace nearbox::agent {
namespace {

constexpr std::size_t kBuffer = 128 * 1024;
constexpr int kPollStep = 60'000;  // ms

// Non-blocking while it lives; a terminal, which others share, is left alone.
class NonBlocking {
 public:
  explicit NonBlocking(int fd) : fd_(fd), flags_(::isatty(fd) != 0 ? -1 : ::fcntl(fd, F_GETFL)) {
    if (flags_ >= 0) (void)::fcntl(fd_, F_SETFL, flags_ | O_NONBLOCK);
  }
  ~NonBlocking() {
    if (flags_ >= 0) (void)::fcntl(fd_, F_SETFL, flags_);
  }
  NonBlocking(const NonBlocking&) = delete;
  NonBlocking& operator=(const NonBlocking&) = delete;

 private:
  int fd_;
  int flags_;
};

// One direction.
struct Flow {
  int from;
  int to;
  std::vector<char> buffer = std::vector<char>(kBuffer);
  std::size_t begin = 0;
  std::size_t end = 0;
  bool ended = false;   // `from` has no more
  bool broken = false;  // `to` takes no more

  bool wants_read() const { return !ended && !broken && end < buffer.size(); }
  bool wants_write() const { return !broken && begin < end; }
  bool done() const { return broken || (ended && begin == end); }

  void read_some() {
    const ssize_t n = ::read(from, buffer.data() + end, buffer.size() - end);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
      ended = true;
    } else {
      end += static_cast<std::size_t>(n);
    }
  }
  void write_some() {
    const ssize_t n = ::write(to, buffer.data() + begin, end - begin);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) {
      broken = true;
      return;
    }
    begin += static_cast<std::size_t>(n);
    if (begin == end) begin = end = 0;
  }
};

}  // namespace

base::Result<void> relay(int in, int out, int socket) {
  const NonBlocking a(in);
  const NonBlocking b(out);
  const NonBlocking c(socket);
  Flow up{in, socket};
  Flow down{socket, out};
  bool half_closed = false;
  while (!down.done()) {
    if (up.done() && !half_closed) {
      half_closed = true;
      (void)::shutdown(socket, SHUT_WR);
    }
    struct pollfd wait[4] = {{up.wants_read() ? in : -1, POLLIN, 0},
                             {up.wants_write() ? socket : -1, POLLOUT, 0},
                             {down.wants_read() ? socket : -1, POLLIN, 0},
                             // always there: a reader that goes is seen without anything to write
                             {out, static_cast<short>(down.wants_write() ? POLLOUT : 0), 0}};
    if (::poll(wait, 4, kPollStep) < 0 && errno != EINTR) return base::last_errno("poll");
    if (wait[0].revents != 0) up.read_some();
    if (wait[1].revents != 0) up.write_some();
    if (wait[2].revents != 0) down.read_some();
    if ((wait[3].revents & POLLOUT) != 0) down.write_some();
    if ((wait[3].revents & (POLLERR | POLLNVAL)) != 0) down.broken = true;
  }
  return {};
}

}  // namespace nearbox::agent
