// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
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
#include "tools/sandbox_server/record.h"
#include "tools/sandbox_server/usage.h"

namespace nearbox::sandbox_server {

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

// How long a sandbox may run, from its start or its last resume.
inline constexpr std::chrono::seconds kMaxLifetime{24 * 3600};
// Samples of one sandbox's usage that are kept: each question makes one.
inline constexpr std::size_t kMaxUsageSamples = 256;

enum class PauseMode { kMemory, kFilesOnly };
enum class ResumeMode { kRestore, kReboot };

// One sandbox: its directory, its processes, its state. Paused it either stands still (processes
// stopped, memory kept) or is stored: its files and its record, no process.
//
// Owns:    the init (hence all processes) and the record beside the directory, which is there while
//          the sandbox is to outlive the server: paused, or made to be paused. The files are the table's.
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
    bool stored = false;  // paused without processes
  };

  static base::Result<std::shared_ptr<Sandbox>> create(const Launcher& launcher, SandboxSpec spec,
                                                       std::string id, std::string dir);
  // One that an earlier server left, stored.
  static std::shared_ptr<Sandbox> restore(const Launcher& launcher, SandboxRecord record, std::string dir);
  const std::string& id() const { return id_; }
  const std::string& dir() const { return dir_; }
  const SandboxSpec& spec() const { return spec_; }
  const base::Secret& token() const { return token_; }
  const base::Secret& traffic_token() const { return traffic_token_; }
  Snapshot snapshot() const EXCLUDES(mu_);

  base::Result<void> pause(PauseMode mode) EXCLUDES(op_mu_, mu_);
  // Lets it run again for `timeout`; false when it was running already. Reboot: without what was in memory.
  base::Result<bool> resume(std::chrono::seconds timeout, ResumeMode mode) EXCLUDES(op_mu_, mu_);
  // Ends everything. False: it had ended before.
  bool kill() EXCLUDES(op_mu_, mu_);
  // The server ends: what is to outlive it is stored. False: the sandbox has ended, its files can go.
  bool put_away() EXCLUDES(op_mu_, mu_);
  // Sets the end to now + timeout, at most kMaxLifetime after the start; `only_later`: never to an earlier
  // time.
  base::Result<void> set_timeout(std::chrono::seconds timeout, bool only_later) EXCLUDES(mu_);
  // False once the init has ended by itself and with it the sandbox; one that is to outlive that is
  // stored instead.
  bool alive() EXCLUDES(op_mu_, mu_);

  // Looks what a running sandbox uses and returns that after the earlier samples.
  std::vector<Usage> usage() EXCLUDES(op_mu_, mu_);

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
  Sandbox(const Launcher& launcher, SandboxSpec spec, std::string id, std::string dir);
  base::Result<void> launch() REQUIRES(op_mu_) EXCLUDES(mu_);
  base::Result<void> keep_record(WallClock::time_point ends) EXCLUDES(mu_);
  void become(State state, std::optional<std::chrono::seconds> timeout) REQUIRES(op_mu_) EXCLUDES(mu_);
  void break_connections() REQUIRES(mu_);
  // Tells alive() not to wait for op_mu_, which its maker holds.
  class Changing {
   public:
    explicit Changing(Sandbox& sandbox);
    ~Changing();
    Changing(const Changing&) = delete;
    Changing& operator=(const Changing&) = delete;

   private:
    Sandbox& sandbox_;
  };
  std::string record_path() const { return dir_ + ".json"; }
  pid_t init_pid() EXCLUDES(op_mu_);

  const Launcher launcher_;
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
  bool changing_ GUARDED_BY(mu_) = false;  // somebody holds op_mu_ to change the state, which takes time
  std::multiset<int> connections_ GUARDED_BY(mu_);
  std::deque<Usage> usage_ GUARDED_BY(mu_);
};

}  // namespace nearbox::sandbox_server
