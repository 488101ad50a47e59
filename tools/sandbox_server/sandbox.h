// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/secret.h"
#include "client/base/unique_fd.h"
#include "tools/sandbox_server/init.h"

namespace nearbox::sandbox_server {

using WallClock = std::chrono::system_clock;

// What a client asked for at creation.
struct SandboxSpec {
  std::string template_id;
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::string> envs;
  std::vector<std::string> binds;
  std::chrono::seconds timeout{300};
  bool auto_pause = false;
  bool auto_resume = false;
  bool secure = true;
  bool public_traffic = true;
  std::optional<bool> internet;
};

// How the processes of a sandbox are started.
struct Launcher {
  std::string init_program;
  IsolationMode mode = IsolationMode::kPlain;
};

// A running init: the process and its lifeline. Its end, or that of this object, ends the sandbox.
//
// Owns:    the child process; the destructor ends and reaps it with everything it started, within 20 s.
// Threads: one at a time.
class InitProcess {
 public:
  // Starts the init and waits until it reports. `listen_fd` may be absent for a probe.
  static base::Result<std::unique_ptr<InitProcess>> launch(const Launcher& launcher, const InitConfig& config,
                                                           int listen_fd);
  ~InitProcess();
  InitProcess(const InitProcess&) = delete;
  InitProcess& operator=(const InitProcess&) = delete;
  // Sends kFreeze or kThaw and waits for the answer.
  base::Result<void> command(std::string_view text);
  bool running();
  pid_t pid() const { return pid_; }

 private:
  InitProcess() = default;
  base::Result<std::string> receive(std::chrono::milliseconds timeout);
  pid_t pid_ = -1;
  bool reaped_ = false;
  base::UniqueFd control_;
};

// One sandbox: its directory, its processes, its state.
//
// Owns:    the init (hence all processes); the directory is the table's to remove.
// Threads: any. op_mu_ serialises what changes the state and is held while the init answers; mu_ is
//          a leaf and guards the fields.
// Errors:  ESRCH: not in a state for it.
class Sandbox {
 public:
  enum class State { kRunning, kPaused, kEnded };
  struct Snapshot {
    State state = State::kEnded;
    WallClock::time_point started;
    WallClock::time_point ends;
  };

  static base::Result<std::shared_ptr<Sandbox>> create(const Launcher& launcher, SandboxSpec spec,
                                                       std::string id, std::string dir);
  const std::string& id() const { return id_; }
  const std::string& dir() const { return dir_; }
  const SandboxSpec& spec() const { return spec_; }
  const base::Secret& token() const { return token_; }
  const base::Secret& traffic_token() const { return traffic_token_; }
  Snapshot snapshot() const EXCLUDES(mu_);

  base::Result<void> pause() EXCLUDES(op_mu_, mu_);
  // Lets it run again for `timeout`; false when it was running already.
  base::Result<bool> resume(std::chrono::seconds timeout) EXCLUDES(op_mu_, mu_);
  // Ends everything. False: it had ended before.
  bool kill() EXCLUDES(op_mu_, mu_);
  // Sets the end to now + timeout; `only_later`: never to an earlier time.
  base::Result<void> set_timeout(std::chrono::seconds timeout, bool only_later) EXCLUDES(mu_);
  // False once the init has ended by itself.
  bool alive() EXCLUDES(op_mu_);

  base::Result<base::UniqueFd> connect_envd() const;
  // Whether what listens on this port of 127.0.0.1 is a process of this sandbox.
  bool listens(std::uint16_t port) EXCLUDES(op_mu_);

  // A connection that belongs to the sandbox: broken when it is paused or ends.
  class Connection {
   public:
    Connection(Sandbox& sandbox, int fd);
    ~Connection();
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    // False: the sandbox does not run (any more).
    bool accepted() const { return accepted_; }

   private:
    Sandbox& sandbox_;
    int fd_;
    bool accepted_;
  };

 private:
  Sandbox(SandboxSpec spec, std::string id, std::string dir);
  base::Result<void> launch(const Launcher& launcher) EXCLUDES(op_mu_, mu_);
  void break_connections() REQUIRES(mu_);

  const SandboxSpec spec_;
  const std::string id_;
  const std::string dir_;
  base::Secret token_;
  base::Secret traffic_token_;
  base::UniqueFd dir_fd_;
  base::Mutex op_mu_;  // rank: before mu_
  std::unique_ptr<InitProcess> init_ GUARDED_BY(op_mu_);
  mutable base::Mutex mu_;
  Snapshot state_ GUARDED_BY(mu_);
  std::multiset<int> connections_ GUARDED_BY(mu_);
};

}  // namespace nearbox::sandbox_server
