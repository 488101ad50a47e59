// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "client/api/error_code.h"
#include "tools/cli/app.h"
#include "tools/cli/connect.h"
#include "tools/cli/exec_envd.h"
#include "tools/daemon/control_errors.h"

namespace nearbox::cli {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr int kOurFailure = 125;
constexpr std::uint64_t kInputWindow = 256 * 1024;  // sent ahead of what the command took
constexpr std::size_t kInputPiece = 32 * 1024;

// Puts a terminal into raw mode and back.
class RawTerminal {
 public:
  explicit RawTerminal(bool wanted) {
    if (!wanted || ::tcgetattr(0, &saved_) != 0) return;
    termios raw = saved_;
    ::cfmakeraw(&raw);
    active_ = ::tcsetattr(0, TCSANOW, &raw) == 0;
  }
  ~RawTerminal() {
    if (active_) (void)::tcsetattr(0, TCSANOW, &saved_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  termios saved_{};
  bool active_ = false;
};

bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n > 0) {
      text.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EAGAIN) {
      pollfd p{fd, POLLOUT, 0};
      (void)::poll(&p, 1, 60'000);
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

winsize terminal_size() {
  winsize size{24, 80, 0, 0};
  (void)::ioctl(0, TIOCGWINSZ, &size);
  return size;
}

// Between this terminal and the daemon, until the command ended.
class ExecClient {
 public:
  ExecClient(App& app, daemon::ControlConnection& connection, bool input, bool tty)
      : app_(app), connection_(connection), input_(input), tty_(tty) {}
  int loop();

 private:
  bool handle(const daemon::ControlFrame& frame);
  void handle_json(const nlohmann::json& message);
  void handle_signal();
  void forward_input();

  App& app_;
  daemon::ControlConnection& connection_;
  bool input_;
  bool tty_;
  std::uint64_t sent_ = 0;
  std::uint64_t taken_ = 0;
  bool over_ = false;
  int code_ = kOurFailure;
  base::UniqueFd signals_;
};

void ExecClient::handle_json(const nlohmann::json& message) {
  if (const auto exit = message.find("exit"); exit != message.end()) {
    const int signal = exit->value("signal", 0);
    code_ = signal > 0 ? 128 + signal : exit->value("code", kOurFailure);
    over_ = true;
  } else if (const auto error = message.find("error"); error != message.end()) {
    (void)fail(app_, daemon::error_from(*error));
    over_ = true;
  } else if (const auto gap = message.find("gap"); gap != message.end()) {
    std::fprintf(stderr, "nearbox: %llu bytes of output were dropped while nobody read them\n",
                 static_cast<unsigned long long>(gap->get<std::uint64_t>()));
  } else if (const auto problem = message.find("input_error"); problem != message.end()) {
    std::fprintf(stderr, "nearbox: %s\n", problem->is_string() ? problem->get<std::string>().c_str() : "");
  } else if (const auto taken = message.find("input_taken"); taken != message.end()) {
    taken_ = taken->get<std::uint64_t>();
  }
}

bool ExecClient::handle(const daemon::ControlFrame& frame) {
  switch (frame.type) {
    case daemon::ControlType::kStdout:
      return write_all(1, frame.payload);
    case daemon::ControlType::kStderr:
      return write_all(2, frame.payload);
    case daemon::ControlType::kJson:
      if (auto message = daemon::parse_json(frame.payload); message && message->is_object()) {
        handle_json(*message);
        return true;
      }
      return false;
    default:
      return false;
  }
}

void ExecClient::handle_signal() {
  signalfd_siginfo info{};
  if (::read(signals_.get(), &info, sizeof info) != sizeof info) return;
  const auto deadline = Clock::now() + 10s;
  if (info.ssi_signo == SIGWINCH) {
    const auto size = terminal_size();
    if (tty_)
      (void)connection_.write_json({{"resize", {{"rows", size.ws_row}, {"cols", size.ws_col}}}}, deadline);
    return;
  }
  (void)connection_.write_json({{"signal", info.ssi_signo}}, deadline);
}

void ExecClient::forward_input() {
  char buffer[kInputPiece];
  const ssize_t n = ::read(0, buffer, sizeof buffer);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  const auto deadline = Clock::now() + 60s;
  if (n <= 0) {
    input_ = false;
    (void)connection_.write(daemon::ControlType::kStdinEof, {}, deadline);
    return;
  }
  sent_ += static_cast<std::uint64_t>(n);
  (void)connection_.write(daemon::ControlType::kStdin, std::string_view(buffer, static_cast<std::size_t>(n)),
                          deadline);
}

int ExecClient::loop() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGUSR1, SIGUSR2})
    sigaddset(&set, signal);
  (void)::sigprocmask(SIG_BLOCK, &set, nullptr);
  signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  const RawTerminal raw(tty_);
  while (!over_) {
    const bool read_input = input_ && sent_ - taken_ < kInputWindow;
    pollfd fds[3] = {
        {connection_.fd(), POLLIN, 0}, {signals_.get(), POLLIN, 0}, {read_input ? 0 : -1, POLLIN, 0}};
    if (::poll(fds, 3, 60'000) < 0 && errno != EINTR) break;
    if ((fds[1].revents & POLLIN) != 0) handle_signal();
    if ((fds[2].revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL)) != 0) forward_input();
    if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
    auto frame = connection_.read(Clock::now() + 60s);
    if (!frame) {
      (void)fail(app_, base::errno_error(frame.error().as_errno(),
                                         "the daemon went away while the command ran; see nearbox status"));
      return kOurFailure;
    }
    if (!handle(*frame)) break;
  }
  return code_;
}

struct ExecArgs {
  std::string target;
  std::string cwd;
  std::vector<std::string> env;
  std::string user;
  std::vector<std::string> command;
  bool tty = false;
  bool no_stdin = false;
  bool detach = false;
  std::string via = "agent";
  std::uint32_t ring_bytes = 0;
  int timeout_s = 60;
};

// 125 whatever the failure of ours is; see the error's own text and code.
int fail_exec(const App& app, const base::Error& error) {
  (void)fail(app, error);
  return kOurFailure;
}

int run_exec(App& app, const ExecArgs& args) {
  if (args.command.empty()) {
    (void)fail(app, api::make_error(api::ErrorCode::kArgMissing,
                                    "command is required: nearbox exec SANDBOX -- COMMAND [ARG…]"));
    return 2;
  }
  for (const auto& pair : args.env) {
    if (pair.find('=') == std::string::npos || pair.front() == '=') {
      return fail_exec(
          app, api::make_error(api::ErrorCode::kArgInvalid, "--env is not valid: '" + pair + "' is not K=V"));
    }
  }
  const auto deadline = Clock::now() + std::chrono::seconds(args.timeout_s);
  if (args.via == "envd") {
    return exec_via_envd(app, {args.target, args.cwd, args.env, args.user, args.command, !args.no_stdin},
                         deadline);
  }
  auto opened = open_daemon(app, args.target, deadline);
  if (!opened) return fail_exec(app, opened.error());
  const auto size = terminal_size();
  const bool stdin_open = !args.no_stdin && !args.detach && ::fcntl(0, F_GETFD) >= 0;
  const nlohmann::json message = {{"op", "exec"},
                                  {"argv", args.command},
                                  {"cwd", args.cwd.empty() ? opened->target.dir : args.cwd},
                                  {"env", args.env},
                                  {"user", args.user},
                                  {"tty", args.tty},
                                  {"rows", size.ws_row},
                                  {"cols", size.ws_col},
                                  {"stdin", stdin_open},
                                  {"background", args.detach},
                                  {"ring_bytes", args.ring_bytes},
                                  {"timeout_ms", milliseconds_left(deadline)}};
  // Arguments are bytes; JSON is UTF-8: what is none is refused rather than changed.
  std::string text;
  try {
    text = message.dump();
  } catch (const nlohmann::json::exception&) {
    return fail_exec(
        app, api::make_error(api::ErrorCode::kArgInvalid, "COMMAND is not valid: its words must be UTF-8"));
  }
  if (auto sent = opened->connection->write(daemon::ControlType::kJson, text, deadline); !sent) {
    return fail_exec(app, sent.error());
  }
  auto first = opened->connection->read_json(deadline + 10s);
  if (!first) return fail_exec(app, first.error());
  if (const auto error = first->find("error"); error != first->end())
    return fail_exec(app, daemon::error_from(*error));
  if (args.detach) {
    if (app.json) {
      print_json(first->value("started", nlohmann::json::object()));
    } else {
      std::printf("%d\n", (*first)["started"].value("pid", 0));
    }
    return 0;
  }
  return ExecClient(app, *opened->connection, stdin_open, args.tty).loop();
}

}  // namespace

void add_exec(CLI::App& parser, App& app) {
  auto args = std::make_shared<ExecArgs>();
  auto* exec = parser.add_subcommand("exec", "Run a command in the sandbox");
  exec->add_option("target", args->target, "SANDBOX[:DIR]")->required();
  exec->add_option("-C,--cwd", args->cwd, "Directory to run in (default: DIR, else the user's home)");
  exec->add_option("-e,--env", args->env, "K=V for the command; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  exec->add_option("-u,--user", args->user, "User in the sandbox");
  exec->add_flag("-t,--tty", args->tty, "Give the command a terminal");
  exec->add_flag("-n,--no-stdin", args->no_stdin, "The command's stdin is /dev/null");
  exec->add_flag("-d,--detach", args->detach, "Return as soon as it runs");
  exec->add_option("--via", args->via, "agent, or envd (E2B's own service)")
      ->check(CLI::IsMember({"agent", "envd"}));
  exec->add_option("--ring", args->ring_bytes, "Bytes of output kept in the sandbox (64 KiB to 64 MiB)");
  exec->add_option("--connect-timeout", args->timeout_s, "Seconds to wait for the sandbox")
      ->check(CLI::Range(1, 3600));
  exec->add_option("command", args->command, "COMMAND [ARG…], after --");
  exec->callback([&app, args] {
    args->command.insert(args->command.end(), app.rest.begin(), app.rest.end());
    app.run = [&app, args] { return run_exec(app, *args); };
  });
}

}  // namespace nearbox::cli
