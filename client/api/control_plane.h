// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"
#include "client/base/secret.h"

namespace nearbox::api {

using Deadline = std::chrono::steady_clock::time_point;

inline constexpr std::size_t kMaxSandboxId = 64;
inline constexpr std::size_t kMaxListPages = 1000;

// A sandbox's name: lower-case letters and digits. Safe in URLs, host names and file names.
class SandboxId {
 public:
  // Takes the old form "<id>-<client>" too and drops what follows the dash. arg.invalid otherwise.
  static base::Result<SandboxId> parse(std::string_view text);
  const std::string& str() const { return value_; }
  friend auto operator<=>(const SandboxId&, const SandboxId&) = default;

 private:
  explicit SandboxId(std::string value) : value_(std::move(value)) {}
  std::string value_;
};

enum class SandboxState : std::uint8_t { kRunning, kPaused, kOther };

struct SandboxInfo {
  SandboxId id;
  std::string template_id;
  std::string alias;
  SandboxState state = SandboxState::kOther;
  std::string started_at, end_at;  // RFC 3339, as the service gave them
  std::uint32_t cpu_count = 0, memory_mb = 0, disk_mb = 0;
  std::map<std::string, std::string> metadata;
  std::string domain;  // empty: the configured one
  std::string envd_version;
};

// What is needed to reach the data plane of one sandbox.
struct SandboxAccess {
  SandboxId id;
  std::string domain;          // empty: the configured one
  base::Secret envd_token;     // empty: the sandbox is open
  base::Secret traffic_token;  // empty: its ports are public
  std::string template_id;
  std::string envd_version;
  bool resumed = false;  // connect() woke a paused one
};

struct CreateOptions {
  std::string template_id = "base";
  std::chrono::milliseconds timeout{300'000};  // sent in whole seconds, rounded up
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::string> envs;
  bool auto_pause = true;  // false: the sandbox is killed when its time is over
  bool allow_internet_access = true;
};

struct ListFilter {
  bool running = true;
  bool paused = true;
  std::map<std::string, std::string> metadata;  // all must match
  std::string template_id;
  std::size_t limit = 10'000;  // sandboxes, over all pages
};

struct SandboxList {
  std::vector<SandboxInfo> sandboxes;
  bool complete = true;  // false: `limit` was reached
};

// The service that makes and ends sandboxes.
//
// Threads: any; each call runs in the caller's thread and ends at its deadline or when asked to stop.
// Errors:  auth.*, sandbox.not_found, sandbox.busy (409), sandbox.limit, sandbox.create_failed,
//          template.unknown, rate_limited, net.*, timeout.request, arg.invalid, cancelled.
// Source:  E2B spec/openapi.yml (infra 54693ff); /v2 create and connect: npm e2b 2.51.0.
class ControlPlane {
 public:
  virtual ~ControlPlane() = default;
  virtual base::Result<SandboxAccess> create(const CreateOptions& options, Deadline deadline,
                                             std::stop_token stop = {}) = 0;
  // Access to a sandbox that runs; a paused one is resumed. Extends its life to `timeout`, never shortens it.
  virtual base::Result<SandboxAccess> connect(const SandboxId& id, std::chrono::milliseconds timeout,
                                              Deadline deadline, std::stop_token stop = {}) = 0;
  virtual base::Result<SandboxInfo> get(const SandboxId& id, Deadline deadline,
                                        std::stop_token stop = {}) = 0;
  virtual base::Result<SandboxList> list(const ListFilter& filter, Deadline deadline,
                                         std::stop_token stop = {}) = 0;
  // Ends `timeout` from now, sooner or later than before.
  virtual base::Result<void> set_timeout(const SandboxId& id, std::chrono::milliseconds timeout,
                                         Deadline deadline, std::stop_token stop = {}) = 0;
  // False: it was paused already.
  virtual base::Result<bool> pause(const SandboxId& id, Deadline deadline, std::stop_token stop = {}) = 0;
  // False: there was none of that name.
  virtual base::Result<bool> kill(const SandboxId& id, Deadline deadline, std::stop_token stop = {}) = 0;
};

}  // namespace nearbox::api
