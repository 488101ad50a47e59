// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::daemon {

using Deadline = std::chrono::steady_clock::time_point;

// The protocol between commands and the daemon: frames on a unix socket that only its user can open.
// Frame: u32 little-endian length, one byte type, payload. docs/control.md lists the requests.
enum class ControlType : std::uint8_t {
  kJson = 'J',   // request, answer, progress
  kStdin = 'I',  // client → daemon
  kStdinEof = 'C',
  kStdout = 'O',  // daemon → client
  kStderr = 'E',
};

inline constexpr std::size_t kMaxControlFrame = 1024 * 1024;
// Raised when requests change shape: a newer command then meets an older daemon with a clear message.
inline constexpr int kControlVersion = 1;

struct ControlFrame {
  ControlType type{};
  std::string payload;
};

// One end of a control connection.
//
// Owns:    the socket.
// Threads: one reader; write() from any thread.
// Errors:  ECONNRESET when the other end is gone, EPROTO for a broken frame, ETIMEDOUT.
class ControlConnection {
 public:
  explicit ControlConnection(base::UniqueFd fd) : fd_(std::move(fd)) {}

  base::Result<ControlFrame> read(Deadline deadline);
  base::Result<void> write(ControlType type, std::string_view payload, Deadline deadline) EXCLUDES(write_mu_);
  base::Result<void> write_json(const nlohmann::json& value, Deadline deadline);
  base::Result<nlohmann::json> read_json(Deadline deadline);
  void shutdown() noexcept;  // wakes the reader
  int fd() const { return fd_.get(); }

 private:
  base::Result<void> read_all(char* into, std::size_t size, Deadline deadline);

  base::UniqueFd fd_;
  base::Mutex
      write_mu_;  // rank: leaf; held while one frame is written, up to the deadline of whoever writes it
};

// Parses JSON without exceptions; EPROTO otherwise.
base::Result<nlohmann::json> parse_json(std::string_view text);

// Connects to `path`; ECONNREFUSED or ENOENT when nobody listens.
base::Result<base::UniqueFd> connect_unix(const std::string& path);
// Listens on `path` (0600, an old socket file is replaced: the caller holds the lock).
base::Result<base::UniqueFd> listen_unix(const std::string& path);

}  // namespace nearbox::daemon
