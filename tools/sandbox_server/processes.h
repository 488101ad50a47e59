// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <sys/types.h>
#include <thread>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "tools/sandbox_server/users.h"

namespace nearbox::sandbox_server {

inline constexpr std::size_t kMaxProcesses = 512;
inline constexpr std::size_t kOutputChunk = 32 * 1024;
inline constexpr std::size_t kPtyChunk = 16 * 1024;
// Events waiting for one subscriber; when it is full the process's output is not read on.
inline constexpr std::size_t kMaxQueuedEvents = 64;
// How long an ended process can still be asked for its exit.
inline constexpr std::chrono::seconds kExitRetention{30};

struct PtySize {
  std::uint16_t columns = 80;
  std::uint16_t rows = 24;
};

struct ProcessSpec {
  std::string command;
  std::vector<std::string> arguments;
  std::vector<std::string> environment;             // "NAME=value", complete
  std::map<std::string, std::string> request_envs;  // as given at Start, for List
  std::string directory;                            // resolved
  std::optional<std::string> requested_directory;   // as given at Start
  std::optional<std::string> tag;
  std::optional<PtySize> pty;
  bool with_stdin = true;
  std::optional<std::chrono::steady_clock::time_point> deadline;  // killed then
  User user;
};

struct ProcessEvent {
  enum class Kind { kStdout, kStderr, kPty, kEnd };
  Kind kind = Kind::kEnd;
  std::string data;     // output
  int wait_status = 0;  // kEnd: as waitpid gives it
};

// The events of one process for one reader, bounded.
//
// Threads: the process's thread pushes, one reader pops.
class Subscription {
 public:
  enum class Pop { kEvent, kTimeout };
  // Waits for room. Events for a closed subscription are dropped.
  void push(const ProcessEvent& event) EXCLUDES(mu_);
  Pop pop(ProcessEvent& out, std::chrono::steady_clock::time_point deadline) EXCLUDES(mu_);
  void close() EXCLUDES(mu_);
  bool closed() const EXCLUDES(mu_);

 private:
  mutable base::Mutex mu_;
  base::CondVar changed_;
  std::deque<ProcessEvent> queue_ GUARDED_BY(mu_);
  bool closed_ GUARDED_BY(mu_) = false;
};

// One process started through envd: it goes on without subscribers, its output is then discarded.
//
// Owns:    its pipes or terminal and the thread that reads them; not the process's descendants.
// Threads: any.
class EnvdProcess {
 public:
  static base::Result<std::shared_ptr<EnvdProcess>> start(ProcessSpec spec,
                                                          std::shared_ptr<Subscription> first);
  ~EnvdProcess();
  EnvdProcess(const EnvdProcess&) = delete;
  EnvdProcess& operator=(const EnvdProcess&) = delete;

  pid_t pid() const { return pid_; }
  const ProcessSpec& spec() const { return spec_; }
  std::shared_ptr<Subscription> subscribe() EXCLUDES(mu_);
  bool ended() const EXCLUDES(mu_);
  // When it ended, once every reader has been told: its thread needs nobody any more.
  std::optional<std::chrono::steady_clock::time_point> settled_at() const EXCLUDES(mu_);

  // Writes all of `data`; waits while the pipe is full and `going` says so. EPIPE: no stdin (any more).
  base::Result<void> write_input(std::string_view data, bool pty, const std::function<bool()>& going)
      EXCLUDES(input_mu_);
  base::Result<void> close_stdin() EXCLUDES(input_mu_);
  base::Result<void> resize(PtySize size);
  // To this process alone. ESRCH: it has ended.
  base::Result<void> signal(int number) EXCLUDES(mu_);

 private:
  explicit EnvdProcess(ProcessSpec spec) : spec_(std::move(spec)) {}
  base::Result<void> spawn();
  void pump() noexcept;
  bool read_output(base::UniqueFd& fd, ProcessEvent::Kind kind);
  void drain();
  void publish(const ProcessEvent& event) EXCLUDES(mu_);
  void finish() EXCLUDES(mu_);

  const ProcessSpec spec_;
  pid_t pid_ = -1;
  base::UniqueFd pidfd_;
  base::UniqueFd out_;  // the thread's own, as err_
  base::UniqueFd err_;
  base::UniqueFd terminal_;
  std::atomic<bool> exiting_{false};  // its input is wanted no more: writers let go of input_mu_
  base::Mutex input_mu_;              // rank: before mu_
  base::UniqueFd stdin_ GUARDED_BY(input_mu_);
  mutable base::Mutex mu_;
  std::vector<std::shared_ptr<Subscription>> subscribers_ GUARDED_BY(mu_);
  std::optional<int> wait_status_ GUARDED_BY(mu_);
  std::optional<std::chrono::steady_clock::time_point> ended_at_ GUARDED_BY(mu_);
  bool settled_ GUARDED_BY(mu_) = false;
  bool killed_ GUARDED_BY(mu_) = false;  // its end does not wait for descendants that hold its pipes
  std::jthread thread_;                  // last: it uses the others
};

// The processes of a sandbox's envd. Threads: any. Limit: kMaxProcesses living ones; the oldest ended
// one makes room.
class ProcessTable {
 public:
  // EAGAIN at the limit, EINVAL when the directory cannot be entered.
  base::Result<std::shared_ptr<EnvdProcess>> start(ProcessSpec spec, std::shared_ptr<Subscription> first)
      EXCLUDES(mu_);
  std::shared_ptr<EnvdProcess> find(std::optional<pid_t> pid, const std::optional<std::string>& tag)
      EXCLUDES(mu_);
  std::vector<std::shared_ptr<EnvdProcess>> living() EXCLUDES(mu_);

 private:
  void forget_old(std::vector<std::shared_ptr<EnvdProcess>>& out) REQUIRES(mu_);
  bool make_room(std::vector<std::shared_ptr<EnvdProcess>>& out) REQUIRES(mu_);
  base::Mutex mu_;
  std::map<pid_t, std::shared_ptr<EnvdProcess>> table_ GUARDED_BY(mu_);
};

}  // namespace nearbox::sandbox_server
