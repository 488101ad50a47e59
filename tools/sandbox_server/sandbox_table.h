// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>
#include <thread>

#include "tools/sandbox_server/sandbox.h"
#include "tools/sandbox_server/trash.h"

namespace nearbox::sandbox_server {

// Sandboxes with processes, running or standing still.
inline constexpr std::size_t kMaxSandboxes = 128;
// All of them, with those that are stored.
inline constexpr std::size_t kMaxKept = 1024;

// All sandboxes of a server, below one directory. A paused one outlives the server, as does one that
// was made to be paused when its time is over; the next server on the directory has them, stored.
//
// Owns:    the directory (locked against a second server), each sandbox with its files, a thread
//          that ends or pauses what has expired, and one that removes the files of what has ended.
// Threads: any. mu_ is never held while a sandbox starts, stops or answers.
class SandboxTable {
 public:
  // Takes over the directory: brings back what is stored there, removes what else an earlier server
  // left, and says so.
  // EBUSY: another server uses it.
  static base::Result<std::unique_ptr<SandboxTable>> open(const std::string& dir,
                                                          const std::string& init_program, bool isolate,
                                                          base::Logger& log);
  ~SandboxTable();
  SandboxTable(const SandboxTable&) = delete;
  SandboxTable& operator=(const SandboxTable&) = delete;

  IsolationMode mode() const { return launcher_.mode; }
  // Why sandboxes are not isolated, where they are not.
  const std::string& plain_reason() const { return plain_reason_; }

  // With an idempotency key that a living sandbox was made with: that one.
  // EAGAIN: at a limit. EALREADY: a request with this key is under way.
  base::Result<std::shared_ptr<Sandbox>> create(SandboxSpec spec) EXCLUDES(mu_);
  // Sandbox::resume() within the limit. EAGAIN: at it.
  base::Result<bool> resume(Sandbox& sandbox, std::chrono::seconds timeout, ResumeMode mode) EXCLUDES(mu_);
  std::shared_ptr<Sandbox> find(std::string_view id) EXCLUDES(mu_);
  std::vector<std::shared_ptr<Sandbox>> all() EXCLUDES(mu_);
  // False: no such sandbox.
  bool kill(std::string_view id) EXCLUDES(mu_);
  // To be called when a sandbox's end was moved.
  void wake() EXCLUDES(mu_);
  // Ends all processes, removes the files of what is not to be kept, ends the thread. Idempotent.
  void stop() EXCLUDES(mu_);

 private:
  SandboxTable(std::string dir, base::UniqueFd lock, base::Logger& log);
  void choose_mode(bool isolate);
  void take_over();
  bool bring_back(const std::string& record_path);
  base::Result<void> admit(const SandboxSpec& spec, std::shared_ptr<Sandbox>& same) EXCLUDES(mu_);
  std::size_t with_processes() EXCLUDES(mu_);
  void discard(const std::string& dir);
  void run(const std::stop_token& stop) noexcept EXCLUDES(mu_);
  void expire() EXCLUDES(mu_);
  WallClock::time_point next_end() EXCLUDES(mu_);

  const std::string dir_;
  base::UniqueFd lock_;
  base::Logger& log_;
  Launcher launcher_;
  std::string plain_reason_;
  base::Mutex mu_;
  base::CondVar changed_;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::size_t starting_ GUARDED_BY(mu_) = 0;
  std::set<std::string> starting_keys_ GUARDED_BY(mu_);  // idempotency keys of what starts
  std::map<std::string, std::shared_ptr<Sandbox>, std::less<>> table_ GUARDED_BY(mu_);
  std::unique_ptr<Trash> trash_;  // after open() there is one
  std::jthread thread_;           // last: it uses the others
};

}  // namespace nearbox::sandbox_server
