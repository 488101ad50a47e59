// SPDX-License-Identifier: Apache-2.0
#include "tools/cli/exec_envd.h"

#include <atomic>
#include <csignal>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <thread>
#include <unistd.h>

#include "client/api/error_code.h"
#include "client/http/control_plane.h"
#include "client/http/envd.h"
#include "tools/cli/connect.h"
#include "tools/daemon/find_sandbox.h"

namespace nearbox::cli {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr int kOurFailure = 125;
constexpr auto kCall = 30s;

base::Result<void> write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("write output");
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

// Sends this terminal's input and signals to the process while run() waits for its end.
//
// Owns: one thread, ended by its destructor.
class Feeder {
 public:
  Feeder(api::Envd& envd, std::uint32_t pid, bool input)
      : envd_(envd), pid_(pid), input_(input), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, signal);
    signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }
  ~Feeder() {
    thread_.request_stop();
    const std::uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof one) < 0) return;
  }
  Feeder(const Feeder&) = delete;
  Feeder& operator=(const Feeder&) = delete;

 private:
  void run(const std::stop_token& stop) noexcept {
    pthread_setname_np(pthread_self(), "exec-input");
    if (!input_) (void)envd_.close_stdin(pid_, Clock::now() + kCall);
    while (!stop.stop_requested()) {
      pollfd fds[3] = {{wake_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}, {input_ ? 0 : -1, POLLIN, 0}};
      if (::poll(fds, 3, 60'000) < 0) continue;
      if ((fds[1].revents & POLLIN) != 0) {
        signalfd_siginfo info{};
        if (::read(signals_.get(), &info, sizeof info) > 0) {
          (void)envd_.signal(pid_, api::RunSignal::kTerm, Clock::now() + kCall);
        }
      }
      if ((fds[2].revents & (POLLIN | POLLHUP | POLLERR)) != 0) feed();
    }
  }
  void feed() {
    char buffer[api::kMaxStdinPiece];
    const ssize_t n = ::read(0, buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n > 0 &&
        envd_.send_stdin(pid_, std::string_view(buffer, static_cast<std::size_t>(n)), Clock::now() + 1h))
      return;
    input_ = false;
    if (n <= 0) (void)envd_.close_stdin(pid_, Clock::now() + kCall);
  }

  api::Envd& envd_;
  const std::uint32_t pid_;
  bool input_;
  base::UniqueFd wake_;
  base::UniqueFd signals_;
  std::jthread thread_;  // last: it uses the others
};

base::Result<int> run(const App& app, const EnvdExec& exec, daemon::Deadline deadline) {
  auto config = config_of(app);
  if (!config) return std::move(config).error();
  const bool local = app.local || config->provider == api::Provider::kLocal;
  auto target = daemon::parse_target(exec.target, local);
  if (!target) return std::move(target).error();
  if (target->provider == daemon::Provider::kSsh || target->provider == daemon::Provider::kDocker) {
    return api::make_error(
        api::ErrorCode::kArgInvalid,
        "--via is not valid: envd runs in sandboxes of E2B and of the embedded server only");
  }
  auto service =
      daemon::service_config(target->provider, *std::move(config), daemon::StartServer::kYes, deadline);
  if (!service) return std::move(service).error();
  http::HttpClient client;
  http::HttpControlPlane plane(client, api::control_plane_url(*service), service->api_key);
  auto id = daemon::find_sandbox(plane, target->name, target->provider == daemon::Provider::kLocal, deadline);
  if (!id) return std::move(id).error();
  auto access = plane.connect(*id, service->sandbox_timeout, deadline);
  if (!access) return std::move(access).error();
  http::HttpEnvd envd(client, *id, http::route_to(*service, *access, http::kEnvdPort));

  api::RunSpec spec;
  // As a login shell runs it, with the words kept as they are.
  spec.cmd = "/bin/bash";
  spec.args = {"-l", "-c", "exec \"$@\"", "--"};
  spec.args.insert(spec.args.end(), exec.command.begin(), exec.command.end());
  for (const auto& pair : exec.env)
    spec.envs[pair.substr(0, pair.find('='))] = pair.substr(pair.find('=') + 1);
  spec.cwd = exec.cwd.empty() ? target->dir : exec.cwd;
  spec.user = exec.user;
  spec.use_stdin = true;
  std::unique_ptr<Feeder> feeder;
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, signal);
  (void)::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  api::RunEvents events;
  events.on_start = [&](std::uint32_t pid) { feeder = std::make_unique<Feeder>(envd, pid, exec.input); };
  events.on_stdout = [](std::string_view text) { return write_all(1, text); };
  events.on_stderr = [](std::string_view text) { return write_all(2, text); };
  auto result = envd.run(spec, events, Clock::now() + 24h * 30);
  feeder.reset();
  if (!result) return std::move(result).error();
  return result->exited ? result->exit_code : result->status == "signal: killed" ? 137 : 143;
}

}  // namespace

int exec_via_envd(App& app, const EnvdExec& exec, daemon::Deadline deadline) {
  auto code = run(app, exec, deadline);
  if (code) return *code;
  (void)fail(app, code.error());
  return kOurFailure;
}

}  // namespace nearbox::cli
