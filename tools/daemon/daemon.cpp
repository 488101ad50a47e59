// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/daemon.h"

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <list>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include "client/api/config.h"
#include "client/api/error_code.h"
#include "client/base/mutex.h"
#include "tools/daemon/control.h"
#include "tools/daemon/control_errors.h"
#include "tools/daemon/engine.h"
#include "tools/daemon/exec_session.h"
#include "tools/daemon/layout.h"
#include "tools/daemon/mounts.h"
#include "tools/daemon/service.h"
#include "tools/daemon/sync_session.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxClients = 64;
constexpr auto kSettle = 30s;  // around a command
constexpr auto kLinger = 3s;   // after the last use, so that a second command finds the link warm
constexpr auto kRequestDeadline = 60s;
constexpr auto kHelloDeadline = 10s;
constexpr auto kStopDeadline = 20s;

// Serves the commands of one user for one sandbox.
//
// Owns:    the listening socket, a thread per client (at most kMaxClients), the engine.
// Threads: run() is the main thread.
class Daemon {
 public:
  Daemon(base::UniqueFd listener, base::UniqueFd signals, base::Logger& log)
      : listener_(std::move(listener)),
        signals_(std::move(signals)),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        log_(log) {}

  void start(std::unique_ptr<Dialer> dialer, const Layout& layout, fs::ReadPolicy reads,
             std::size_t max_entries) {
    engine_ = std::make_unique<Engine>(
        std::move(dialer), layout, std::move(reads), max_entries, [this] { wake(); }, log_);
  }
  void run();

 private:
  struct Client {
    std::unique_ptr<ControlConnection> connection;
    std::atomic<bool> done{false};
    std::jthread thread;
  };

  // A command that keeps the daemon while it runs.
  class Use {
   public:
    Use(Daemon& daemon, bool counts) : daemon_(counts ? &daemon : nullptr) {
      if (daemon_ != nullptr) ++daemon_->uses_;
    }
    ~Use() {
      if (daemon_ == nullptr) return;
      daemon_->used_ = true;
      --daemon_->uses_;
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Daemon* const daemon_;
  };

  void wake() noexcept {
    const std::uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof one) < 0) return;  // full: it is awake already
  }
  void accept_one();
  void serve(Client& client) noexcept;
  void answer(ControlConnection& connection, const nlohmann::json& message);
  base::Result<nlohmann::json> handle(const std::string& op, const nlohmann::json& message,
                                      Deadline deadline);
  void reap();
  // Asking for the status is no use: watching a daemon must not keep it.
  bool in_use() const { return uses_ > 0 || engine_->mounts() > 0; }

  base::UniqueFd listener_;
  base::UniqueFd signals_;
  base::UniqueFd wake_;
  base::Logger& log_;
  std::unique_ptr<Engine> engine_;
  std::list<Client> clients_;  // main thread only
  std::atomic<int> uses_{0};
  std::atomic<int> undecided_{0};  // accepted, and what they want is not known: the daemon waits for that
  std::atomic<bool> used_{false};  // since the main thread last looked
  std::atomic<bool> stop_{false};
};

void Daemon::run() {
  auto idle_since = Clock::now();
  while (!stop_) {
    reap();
    if (used_.exchange(false) || in_use()) idle_since = Clock::now();
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(idle_since + kLinger - Clock::now());
    if (!in_use() && undecided_ == 0 && left <= 0ms) break;
    pollfd fds[3] = {{listener_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    const int timeout = in_use() || undecided_ > 0 ? 60'000 : static_cast<int>(left.count());
    if (::poll(fds, 3, timeout) <= 0) continue;
    if ((fds[2].revents & POLLIN) != 0) {
      std::uint64_t count = 0;
      if (::read(wake_.get(), &count, sizeof count) < 0) continue;
    }
    if ((fds[1].revents & POLLIN) != 0) break;
    if ((fds[0].revents & POLLIN) != 0) accept_one();
  }
  log_.info("event=daemon_stop");
  listener_.reset();
  (void)engine_->unmount_all(Clock::now() + kStopDeadline);
  engine_->stop();
  for (auto& client : clients_) client.connection->shutdown();
  clients_.clear();
  engine_.reset();
}

void Daemon::reap() {
  clients_.remove_if([](const Client& client) { return client.done.load(); });
  engine_->reap();
}

void Daemon::accept_one() {
  base::UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd) return;
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
      (peer.uid != ::getuid() && peer.uid != 0)) {
    log_.warn("event=client_refused why=other_user");
    return;
  }
  if (clients_.size() >= kMaxClients) {
    ControlConnection connection(std::move(fd));
    const auto error = base::errno_error(EAGAIN, "the daemon already serves " + std::to_string(kMaxClients) +
                                                     " commands; wait for one to end");
    (void)connection.write_json(
        {{"control", kControlVersion}, {"version", NEARBOX_VERSION}, {"pid", ::getpid()}}, Clock::now() + 1s);
    (void)connection.write_json({{"error", error_object(error)}}, Clock::now() + 1s);
    return;
  }
  auto& client = clients_.emplace_back();
  client.connection = std::make_unique<ControlConnection>(std::move(fd));
  ++undecided_;
  client.thread = std::jthread([this, &client] { serve(client); });
}

void Daemon::serve(Client& client) noexcept {
  pthread_setname_np(pthread_self(), "client");
  bool undecided = true;
  try {
    auto& connection = *client.connection;
    const nlohmann::json hello = {
        {"control", kControlVersion}, {"version", NEARBOX_VERSION}, {"pid", ::getpid()}};
    if (connection.write_json(hello, Clock::now() + kHelloDeadline)) {
      auto message = connection.read_json(Clock::now() + kHelloDeadline);
      if (message && message->is_object()) {
        const bool use = message->value("op", std::string()) != "status";
        const Use counted(*this, use);
        --undecided_;
        undecided = false;
        answer(connection, *message);
      }
    }
    connection.shutdown();
  } catch (const std::exception& error) {
    log_.error(std::string("event=client_failed what=") + error.what());
  }
  if (undecided) --undecided_;
  client.done = true;
  wake();
}

void Daemon::answer(ControlConnection& connection, const nlohmann::json& message) {
  const auto op = message.value("op", std::string());
  const auto deadline =
      Clock::now() + std::chrono::milliseconds(
                         message.value("timeout_ms", std::chrono::milliseconds(kRequestDeadline).count()));
  if (op == "exec") {
    if (auto up = engine_->wait_up(deadline); !up) {
      (void)connection.write_json({{"error", error_object(up.error())}}, Clock::now() + 5s);
      return;
    }
    // The command sees what local programs did before it.
    if (const int error = engine_->drain(std::min(deadline, Clock::now() + kSettle)); error != 0) {
      const auto why =
          base::errno_error(error, "wait until the sandbox has all changes made before the command");
      (void)connection.write_json({{"error", error_object(why)}}, Clock::now() + 5s);
      return;
    }
    ExecSession session(engine_->link(), connection, engine_->name(), log_);
    session.run(message, deadline, [this](std::uint64_t instance, std::uint64_t seq) {
      if (const int error = engine_->settle(instance, seq, Clock::now() + kSettle); error != 0) {
        log_.warn("event=not_settled errno=" + std::to_string(error));
      }
    });
    return;
  }
  if (op == "sync") {
    if (auto up = engine_->wait_up(deadline); !up) {
      (void)connection.write_json({{"error", error_object(up.error())}}, Clock::now() + 5s);
      return;
    }
    SyncSession(engine_->link(), connection, engine_->name(), log_).run(message);
    return;
  }
  auto result = handle(op, message, deadline);
  if (result) {
    (void)connection.write_json({{"ok", *result}}, Clock::now() + 30s);
  } else {
    log_.info("event=request_failed op=" + op + " why=" + result.error().message());
    (void)connection.write_json({{"error", error_object(result.error())}}, Clock::now() + 30s);
  }
}

base::Result<nlohmann::json> Daemon::handle(const std::string& op, const nlohmann::json& message,
                                            Deadline deadline) {
  if (op == "mount") return engine_->mount(message, deadline);
  if (op == "unmount") {
    auto ours = engine_->unmount(message.value("mountpoint", std::string()), deadline);
    if (!ours) return std::move(ours).error();
    return nlohmann::json{{"unmounted", *ours}};
  }
  if (op == "status") return engine_->status();
  if (op == "flush") {
    if (auto up = engine_->wait_up(deadline); !up) return std::move(up).error();
    if (auto done = engine_->flush(deadline); !done) return std::move(done).error();
    return nlohmann::json{{"status", "flushed"}};
  }
  if (op == "connect") {
    if (auto up = engine_->wait_up(deadline); !up) return std::move(up).error();
    return engine_->status();
  }
  if (op == "stop") {
    stop_ = true;
    wake();
    return nlohmann::json{{"status", "stopping"}};
  }
  return api::make_error(api::ErrorCode::kArgUnknown, "unknown request " + op.substr(0, 40));
}

// ---- start ----------------------------------------------------------------------------------

struct Words {
  std::string target, service, config;
};

Words parse_words(int argc, char** argv) {
  Words words;
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--target") words.target = argv[i + 1];
    if (name == "--service") words.service = argv[i + 1];
    if (name == "--config") words.config = argv[i + 1];
  }
  return words;
}

// One line to whoever started us; afterwards stdout is nobody's.
void report(const nlohmann::json& value) {
  const auto line = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  if (::write(1, line.data(), line.size()) < 0) return;
  const base::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null) ::dup2(null.get(), 1);
}

base::Result<base::UniqueFd> signal_descriptor() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) sigaddset(&set, signal);
  if (::pthread_sigmask(SIG_BLOCK, &set, nullptr) != 0) return base::last_errno("sigmask");
  base::UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return base::last_errno("signalfd");
  return fd;
}

base::Result<void> serve(const Words& words, base::Logger& log) {
  // Targets come as Target::sandbox() says them; an id of E2B is the one form without a prefix.
  auto target = parse_target(words.target, false);
  if (!target) return std::move(target).error();
  auto layout = layout_for(*target, words.service);
  if (!layout) return std::move(layout).error();
  auto lock = lock_daemon(*layout);
  if (!lock) {
    if (lock.error().as_errno() != EBUSY) return std::move(lock).error();
    report({{"busy", true}});
    return {};
  }
  auto sources = api::process_sources();
  sources.config_file = words.config;
  auto config = api::load_config(sources);
  if (!config) return std::move(config).error();
  auto service = service_config(target->provider, *std::move(config), StartServer::kNo, Clock::now() + 20s);
  if (!service) return std::move(service).error();
  auto dialer = make_dialer(*target, *service, log);
  if (!dialer) return std::move(dialer).error();
  auto signals = signal_descriptor();
  if (!signals) return std::move(signals).error();
  clear_dead_mounts(*layout);
  auto listener = listen_unix(layout->socket());
  if (!listener) return std::move(listener).error();
  Daemon daemon(*std::move(listener), *std::move(signals), log);
  daemon.start(*std::move(dialer), *layout, {service->fetch_deny, service->fetch_max_bytes_per_hour},
               service->mirror_max_entries);
  log.info("event=daemon_start target=" + words.target);
  report({{"ready", true}});
  daemon.run();
  (void)::unlink(layout->socket().c_str());
  return {};
}

}  // namespace

int daemon_main(int argc, char** argv) {
  base::Logger log(2, base::LogLevel::kInfo);
  auto served = serve(parse_words(argc, argv), log);
  if (served) return 0;
  log.error("event=daemon_failed why=" + served.error().message());
  report({{"error", error_object(served.error())}});
  return api::exit_code(served.error());
}

}  // namespace nearbox::daemon
