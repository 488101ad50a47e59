// SPDX-License-Identifier: Apache-2.0
#include "client/channel/spawn_carrier.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "client/base/mutex.h"
#include "client/channel/fd_carrier.h"

namespace nearbox::channel {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// poll(2) for input until the deadline. True: something is there (or the other end is gone).
bool wait_readable(int fd, Clock::time_point deadline) {
  pollfd p{fd, POLLIN, 0};
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
    const int n = ::poll(&p, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000)));
    if (n > 0) return true;
    if (left <= 0) return false;
  }
}

// Between fork and exec: async-signal-safe calls only. Reports errno through `report` and ends.
[[noreturn]] void become(const char* const* argv, int in_out, int err, int report, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int sig : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD}) ::signal(sig, SIG_DFL);
  if (::getppid() == parent && ::dup2(in_out, 0) == 0 && ::dup2(in_out, 1) == 1 && ::dup2(err, 2) == 2) {
    ::execvp(argv[0], const_cast<char* const*>(argv));
  }
  const int error = errno;
  (void)!::write(report, &error, sizeof error);
  ::_exit(127);
}

// The child: waited for by pidfd, so that its number is never used after it was reaped.
class Child {
 public:
  Child(pid_t pid, base::UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // The wait status, or nothing while it runs past the deadline.
  std::optional<int> wait(Clock::time_point deadline) {
    if (!wait_readable(pidfd_.get(), deadline)) return std::nullopt;
    base::MutexLock lock(mu_);
    if (!status_) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
    }
    return status_;
  }
  // To its whole group; grandchildren outlive their parent there.
  void signal_group(int sig) {
    base::MutexLock lock(mu_);
    if (!status_) (void)::kill(-pid_, sig);
  }
  void end(milliseconds step) {
    if (wait(Clock::now() + step)) return;
    signal_group(SIGTERM);
    if (wait(Clock::now() + step)) return;
    signal_group(SIGKILL);
    (void)wait(Clock::now() + step);
  }

 private:
  const pid_t pid_;
  const base::UniqueFd pidfd_;
  base::Mutex mu_;  // rank: leaf
  std::optional<int> status_ GUARDED_BY(mu_);
};

// Reads the child's stderr for as long as the carrier lives, and keeps its end.
class StderrKeeper {
 public:
  StderrKeeper(base::UniqueFd fd, base::UniqueFd stop)
      : fd_(std::move(fd)), stop_(std::move(stop)), thread_([this] { run(); }) {}
  ~StderrKeeper() {
    const std::uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one);
    thread_.join();
  }
  StderrKeeper(const StderrKeeper&) = delete;
  StderrKeeper& operator=(const StderrKeeper&) = delete;

  // What came last, once all of it came or the deadline passed.
  std::string text(Clock::time_point deadline) {
    base::MutexLock lock(mu_);
    while (!ended_ && cv_.wait_until(mu_, deadline)) {
    }
    return text_;
  }

 private:
  void run() noexcept {
    pthread_setname_np(pthread_self(), "spawn-stderr");
    std::array<char, 1024> part{};
    while (true) {
      pollfd fds[2] = {{fd_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      if (::poll(fds, 2, 60'000) < 0 && errno != EINTR) break;
      if (fds[1].revents != 0) break;
      if (fds[0].revents == 0) continue;
      const ssize_t n = ::read(fd_.get(), part.data(), part.size());
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n <= 0) break;
      keep({part.data(), static_cast<std::size_t>(n)});
    }
    base::MutexLock lock(mu_);
    ended_ = true;
    cv_.notify_all();
  }
  void keep(std::string_view part) {
    base::MutexLock lock(mu_);
    for (const char c : part) {
      const auto u = static_cast<unsigned char>(c);
      if (c == '\r') continue;
      text_ += c == '\n' || (u >= 0x20 && u != 0x7f) ? c : '?';
    }
    if (text_.size() > kMaxStderr) text_.erase(0, text_.size() - kMaxStderr);
  }

  const base::UniqueFd fd_;
  const base::UniqueFd stop_;
  base::Mutex mu_;  // rank: leaf
  base::CondVar cv_;
  std::string text_ GUARDED_BY(mu_);
  bool ended_ GUARDED_BY(mu_) = false;
  std::jthread thread_;
};

class SpawnCarrier final : public Carrier {
 public:
  SpawnCarrier(std::string name, std::unique_ptr<FdCarrier> bytes, std::unique_ptr<Child> child,
               std::unique_ptr<StderrKeeper> err, const SpawnOptions& options)
      : name_(std::move(name)),
        options_(options),
        child_(std::move(child)),
        stderr_(std::move(err)),
        bytes_(std::move(bytes)) {}
  ~SpawnCarrier() override {
    bytes_.reset();
    child_->end(options_.end_step);
  }
  SpawnCarrier(const SpawnCarrier&) = delete;
  SpawnCarrier& operator=(const SpawnCarrier&) = delete;

  base::Result<std::size_t> read(std::span<std::byte> into, Deadline deadline) override {
    auto got = bytes_->read(into, deadline);
    if (got ? *got > 0 : got.error().as_errno() != ECONNRESET) return got;
    return why_it_ended();
  }
  base::Result<void> write(wire::ByteView bytes, Deadline deadline) override {
    return bytes_->write(bytes, deadline);
  }
  void shutdown() noexcept override { bytes_->shutdown(); }

 private:
  base::Result<std::size_t> why_it_ended() {
    const auto deadline = Clock::now() + options_.end_step;
    const auto status = child_->wait(deadline);
    auto said = stderr_->text(deadline);
    while (!said.empty() && (said.back() == '\n' || said.back() == ' ')) said.pop_back();
    std::replace(said.begin(), said.end(), '\n', ' ');
    const bool well = !status || (WIFEXITED(*status) && WEXITSTATUS(*status) == 0);
    if (well && said.empty()) return std::size_t{0};
    std::string text = name_;
    if (!status) {
      text += " closed its output";
    } else if (WIFEXITED(*status)) {
      text += " ended with status " + std::to_string(WEXITSTATUS(*status));
    } else {
      text += " was ended by signal " + std::to_string(WTERMSIG(*status));
    }
    if (!said.empty()) text += ": " + said;
    return base::errno_error(ECONNRESET, std::move(text));
  }

  const std::string name_;
  const SpawnOptions options_;
  const std::unique_ptr<Child> child_;
  const std::unique_ptr<StderrKeeper> stderr_;
  std::unique_ptr<FdCarrier> bytes_;
};

struct Fds {
  base::UniqueFd ours, theirs, err_read, err_write, report_read, report_write, stop;
};

base::Result<Fds> make_fds() {
  Fds fds;
  int pair[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return base::last_errno("socketpair");
  fds.ours.reset(pair[0]), fds.theirs.reset(pair[1]);
  if (::pipe2(pair, O_CLOEXEC) != 0) return base::last_errno("pipe");
  fds.err_read.reset(pair[0]), fds.err_write.reset(pair[1]);
  if (::pipe2(pair, O_CLOEXEC) != 0) return base::last_errno("pipe");
  fds.report_read.reset(pair[0]), fds.report_write.reset(pair[1]);
  fds.stop.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fds.stop) return base::last_errno("eventfd");
  return fds;
}

}  // namespace

base::Result<std::unique_ptr<Carrier>> spawn_carrier(const std::vector<std::string>& argv,
                                                     const SpawnOptions& options) {
  if (argv.empty()) return base::errno_error(EINVAL, "spawn: no program");
  auto fds = make_fds();
  if (!fds) return std::move(fds).error().during("spawn");
  auto bytes = FdCarrier::from_socket(std::move(fds->ours));
  if (!bytes) return std::move(bytes).error().during("spawn");
  std::vector<const char*> args;
  for (const auto& arg : argv) args.push_back(arg.c_str());
  args.push_back(nullptr);

  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return base::last_errno("spawn: fork");
  if (pid == 0) {
    become(args.data(), fds->theirs.get(), fds->err_write.get(), fds->report_write.get(), parent);
  }
  ::setpgid(pid, pid);  // both do it: whoever comes first
  base::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  const int pidfd_errno = errno;
  fds->theirs.reset();
  fds->err_write.reset();
  fds->report_write.reset();
  int error = 0;
  // Ends at exec (the pipe is close-on-exec) or at the child's end: never waits for the program.
  const ssize_t n = ::read(fds->report_read.get(), &error, sizeof error);
  if (n == static_cast<ssize_t>(sizeof error) || !pidfd) {
    (void)::kill(pid, SIGKILL);
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return base::errno_error(pidfd ? error : pidfd_errno, "start " + argv[0]);
  }
  return std::unique_ptr<Carrier>(std::make_unique<SpawnCarrier>(
      argv[0], std::move(*bytes), std::make_unique<Child>(pid, std::move(pidfd)),
      std::make_unique<StderrKeeper>(std::move(fds->err_read), std::move(fds->stop)), options));
}

}  // namespace nearbox::channel
