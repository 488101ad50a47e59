// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"

namespace nearbox::api {

using Deadline = std::chrono::steady_clock::time_point;

struct RemoteEntry {
  std::string name;
  std::string path;
  enum class Type : std::uint8_t { kFile, kDirectory, kSymlink, kOther } type = Type::kOther;
  std::uint64_t size = 0;
  std::uint32_t mode = 0;      // permission bits
  std::string modified_at;     // RFC 3339
  std::string symlink_target;  // resolved by envd, not the text of the link
};

struct RunSpec {
  std::string cmd;
  std::vector<std::string> args;
  std::map<std::string, std::string> envs;
  std::string cwd;
  std::string user;        // empty: the sandbox's default user
  bool use_stdin = false;  // then feed it with send_stdin() and close_stdin()
};

// What a running process does; called in the thread that called run(), in order.
struct RunEvents {
  std::function<void(std::uint32_t pid)> on_start;
  // An error ends run() with it; the process goes on.
  std::function<base::Result<void>(std::string_view)> on_stdout;
  std::function<base::Result<void>(std::string_view)> on_stderr;
};

struct RunResult {
  std::uint32_t pid = 0;
  bool exited = false;  // false: ended by a signal
  int exit_code = 0;    // -1 when ended by a signal
  std::string status;   // "exit status 1", "signal: killed"
};

enum class RunSignal : std::uint8_t { kTerm, kKill };

// The daemon that E2B runs inside each sandbox: files and processes, one request each.
//
// Everything in it acts as root; `user` says whose files new ones become. envd logs arguments,
// environments and unary calls in full, so no secret may go through them; the output of run() and
// contents of files are not logged.
// Threads: any; a call runs in the caller's thread and ends at its deadline or when asked to stop.
// Errors:  sandbox.not_found (no such sandbox runs), auth.rejected (its token), remote.not_found,
//          remote.no_space, remote.permission, errnos by remote_errno.h, net.*, timeout.request, cancelled.
// Source:  infra 54693ff, packages/envd/spec (envd 0.6.13).
class Envd {
 public:
  virtual ~Envd() = default;
  // False: the sandbox does not run.
  virtual base::Result<bool> healthy(Deadline deadline, std::stop_token stop = {}) = 0;

  // Writes a local file in place: not atomic, mode 0644 when new. The remote one is partial after a failure.
  virtual base::Result<void> upload(int local_fd, std::uint64_t size, const std::string& remote_path,
                                    const std::string& user, Deadline deadline,
                                    std::stop_token stop = {}) = 0;
  virtual base::Result<void> download(const std::string& remote_path,
                                      const std::function<base::Result<void>(std::string_view)>& sink,
                                      Deadline deadline, std::stop_token stop = {}) = 0;

  virtual base::Result<RemoteEntry> stat(const std::string& path, Deadline deadline,
                                         std::stop_token stop = {}) = 0;
  // Parents too; EEXIST when it is there.
  virtual base::Result<RemoteEntry> make_dir(const std::string& path, Deadline deadline,
                                             std::stop_token stop = {}) = 0;
  // rename(2): replaces what is there.
  virtual base::Result<RemoteEntry> move(const std::string& from, const std::string& to, Deadline deadline,
                                         std::stop_token stop = {}) = 0;
  // rm -rf; what is missing is fine.
  virtual base::Result<void> remove(const std::string& path, Deadline deadline,
                                    std::stop_token stop = {}) = 0;
  virtual base::Result<std::vector<RemoteEntry>> list_dir(const std::string& path, std::uint32_t depth,
                                                          Deadline deadline, std::stop_token stop = {}) = 0;

  // Runs to the end of the process and of its output. When it ends early (deadline, stop, lost
  // connection) the process goes on: signal() ends it.
  virtual base::Result<RunResult> run(const RunSpec& spec, const RunEvents& events, Deadline deadline,
                                      std::stop_token stop = {}) = 0;
  // False: it has exited.
  virtual base::Result<bool> signal(std::uint32_t pid, RunSignal signal, Deadline deadline,
                                    std::stop_token stop = {}) = 0;
  // At most kMaxStdinPiece bytes a call, in order; envd logs them.
  virtual base::Result<void> send_stdin(std::uint32_t pid, std::string_view bytes, Deadline deadline,
                                        std::stop_token stop = {}) = 0;
  virtual base::Result<void> close_stdin(std::uint32_t pid, Deadline deadline, std::stop_token stop = {}) = 0;
};

inline constexpr std::size_t kMaxStdinPiece = 64 * 1024;

}  // namespace nearbox::api
