// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/serve.h"

#include <array>
#include <csignal>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "tools/agent/build_id.h"
#include "tools/agent/surroundings.h"

namespace nearbox::agent {
namespace {

constexpr std::chrono::seconds kEndWait{10};  // for sessions when the agent ends
constexpr std::chrono::seconds kLockWait{5};  // for an agent of this build that is ending
constexpr off_t kMaxLogBytes = 1024 * 1024;

int stop_event = -1;  // written by the signal handler
void on_stop(int /*signal*/) { (void)::eventfd_write(stop_event, 1); }
void on_nothing(int /*signal*/) {}

// Handlers rather than ignored or blocked signals: commands that are started get the defaults back.
void catch_signals() {
  struct sigaction action {};
  action.sa_flags = SA_RESTART;
  action.sa_handler = on_nothing;
  (void)::sigaction(SIGPIPE, &action, nullptr);
  (void)::sigaction(SIGHUP, &action, nullptr);
  (void)::sigaction(SIGXFSZ, &action, nullptr);  // a write past RLIMIT_FSIZE: EFBIG is the answer
  action.sa_handler = on_stop;
  (void)::sigaction(SIGTERM, &action, nullptr);
  (void)::sigaction(SIGINT, &action, nullptr);
}

void say(int fd, const std::string& text) {
  if (fd >= 0) (void)!::write(fd, text.data(), text.size());
}

void bound_log() {
  struct stat st {};
  if (::fstat(2, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > kMaxLogBytes) (void)!::ftruncate(2, 0);
}

void run_until_done(Agent& agent, base::Logger& log) {
  while (true) {
    const auto pause = static_cast<int>(agent.next_tick().count());
    std::array<struct pollfd, 2> wait{{{stop_event, POLLIN, 0}, {agent.changed_fd(), POLLIN, 0}}};
    if (::poll(wait.data(), wait.size(), pause) > 0 && wait[0].revents != 0) {
      return log.info("event=stop why=signal");
    }
    bound_log();
    if (agent.tick(Agent::Clock::now())) return log.info("event=stop why=linger");
  }
}

struct Setup {
  base::UniqueFd running;  // the lock
  StatePaths paths;
  std::unique_ptr<Listener> listener;
  AgentState state;
  std::string directory;
};

base::Result<Setup> set_up(const ServeCommand& command, base::Logger& log) {
  Setup setup;
  auto directory = state_directory(command.state_dir);
  if (!directory) return std::move(directory).error();
  base::fault::set_file(*directory + "/faults");
  setup.directory = *directory;
  setup.state.build = build_id();
  setup.paths = state_paths(*directory, setup.state.build, command.kind, command.user);
  auto lock = lock_file(setup.paths.run, std::chrono::steady_clock::now() + kLockWait);
  if (!lock) return std::move(lock).error().during("another agent of this build runs");
  setup.running = std::move(*lock);
  auto listener = command.kind == ListenKind::kTcp ? Listener::tcp(command.port, log)
                                                   : Listener::local(setup.paths.socket, log);
  if (!listener) return std::move(listener).error();
  setup.listener = std::move(*listener);
  setup.state.pid = ::getpid();
  setup.state.port = setup.listener->port();
  if (command.kind == ListenKind::kUnix) setup.state.socket = setup.paths.socket;
  random_bytes(setup.state.token.data(), setup.state.token.size());
  return setup;
}

}  // namespace

int serve_command(const ServeCommand& command, const CarrierMaker& tcp, const CarrierMaker& local) {
  base::Logger log(2, base::LogLevel::kInfo);
  base::UniqueFd ready(command.ready_fd);
  const auto fail = [&](const std::string& why) {
    log.error("event=no_start error=\"" + why + "\"");
    say(ready.get(), why + "\n");
    return 1;
  };
  const base::UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop) return fail("eventfd");
  stop_event = stop.get();
  ::umask(0);  // modes are set exactly
  catch_signals();
  const auto who = pick_identity("/etc", command.user, ::geteuid(), ::getegid());
  if (!who) return fail("no such user: " + command.user);
  auto setup = set_up(command, log);
  if (!setup) return fail(setup.error().message());

  Agent::Options options;
  options.token = setup->state.token;
  options.build = setup->state.build;
  options.who = *who;
  const auto around = settle_in();
  options.features = around.features;
  if (who->known) options.procs.sandbox_user = who->user;
  options.procs.child_nofile_soft = around.nofile_soft;
  options.procs.child_cgroup_procs = around.cgroup_procs;
  options.procs.start_marks = std::make_shared<StartMarkers>(setup->directory + "/started");
  options.procs.attach_grace_ms = static_cast<std::uint32_t>(command.grace.count()) * 1000;
  options.linger = command.linger;
  options.session_grace = command.grace;
  Agent agent(std::move(options), log);
  if (auto up = setup->listener->start(agent, command.kind == ListenKind::kTcp ? tcp : local); !up) {
    return fail(up.error().message());
  }
  if (auto written = write_state(setup->paths.state, setup->state); !written) {
    return fail(written.error().message());
  }
  log.info("event=listening build=" + setup->state.build + " pid=" + std::to_string(setup->state.pid) +
           " port=" + std::to_string(setup->state.port));
  say(ready.get(), "ok\n");
  ready.reset();
  run_until_done(agent, log);
  (void)::unlink(setup->paths.state.c_str());
  agent.stop();
  if (!agent.end_sessions(std::chrono::steady_clock::now() + kEndWait)) {
    // A thread in a call that the kernel does not end cannot be joined. What it would have done is as
    // undone as after a crash, and clients send it again.
    log.warn("event=forced_end why=\"a file system does not answer\"");
    ::_exit(0);
  }
  setup->listener.reset();
  return 0;
}

}  // namespace nearbox::agent
