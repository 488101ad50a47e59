// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_pty.h"

#include <charconv>
#include <fcntl.h>
#include <string>
#include <string_view>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/agent/login_env.h"

namespace nearbox::agent {
namespace {

#if !defined(TIOCGPTPEER)
#define TIOCGPTPEER _IO('T', 0x41)
#endif

constexpr char kDefaultEof = 4;  // ^D

base::Result<base::UniqueFd> open_slave(int master) {
  constexpr int kFlags = O_RDWR | O_NOCTTY | O_CLOEXEC;
  if (!base::fault::active("procs.no_gptpeer")) {
    base::UniqueFd slave(::ioctl(master, TIOCGPTPEER, kFlags));
    if (slave) return slave;
  }
  int number = 0;
  if (::ioctl(master, TIOCGPTN, &number) != 0) return base::last_errno("pty: TIOCGPTN");
  const std::string path = "/dev/pts/" + std::to_string(number);
  base::UniqueFd slave(::open(path.c_str(), kFlags));
  if (!slave) return base::last_errno("pty: open " + path);
  return slave;
}

// The group that write(1) and wall(1) reach terminals through; the user's own where there is none.
gid_t terminal_group(gid_t fallback) {
  const std::string groups = read_text("/etc/group");
  const std::string_view view(groups);
  std::size_t at = view.starts_with("tty:") ? 0 : view.find("\ntty:");
  if (at == std::string_view::npos) return fallback;
  at = view.find(':', view.find(':', at) + 1) + 1;
  gid_t gid = fallback;
  std::from_chars(view.data() + at, view.data() + view.size(), gid);
  return gid;
}

}  // namespace

base::Result<PtyPair> open_pty(uid_t owner, gid_t group, std::uint16_t rows, std::uint16_t cols) {
  PtyPair pair;
  constexpr int kFlags = O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK;
  pair.master.reset(::open("/dev/ptmx", kFlags));
  if (!pair.master) pair.master.reset(::open("/dev/pts/ptmx", kFlags));
  if (!pair.master) return base::last_errno("pty: open /dev/ptmx");
  const int unlock = 0;
  if (::ioctl(pair.master.get(), TIOCSPTLCK, &unlock) != 0) return base::last_errno("pty: unlock");
  auto slave = open_slave(pair.master.get());
  if (!slave) return std::move(slave).error();
  pair.slave = std::move(*slave);
  if (geteuid() == 0 && ::fchown(pair.slave.get(), owner, terminal_group(group)) == 0) {
    (void)::fchmod(pair.slave.get(), 0620);
  }
  termios settings{};
  if (::tcgetattr(pair.slave.get(), &settings) == 0) {
    settings.c_iflag |= IUTF8;  // backspace takes a whole character
    (void)::tcsetattr(pair.slave.get(), TCSANOW, &settings);
  }
  const auto sized =
      resize_pty(pair.master.get(), rows == 0 ? kDefaultRows : rows, cols == 0 ? kDefaultCols : cols);
  if (!sized) return std::move(sized).error();
  return pair;
}

base::Result<void> resize_pty(int fd, std::uint16_t rows, std::uint16_t cols) {
  winsize size{};
  size.ws_row = rows;
  size.ws_col = cols;
  if (::ioctl(fd, TIOCSWINSZ, &size) != 0) return base::last_errno("pty: set size");
  return {};
}

char eof_byte(int fd) {
  termios settings{};
  if (::tcgetattr(fd, &settings) != 0 || settings.c_cc[VEOF] == 0) return kDefaultEof;
  return static_cast<char>(settings.c_cc[VEOF]);
}

}  // namespace nearbox::agent
