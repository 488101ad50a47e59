// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "client/api/config.h"
#include "client/api/control_plane.h"
#include "client/http/http_client.h"

namespace nearbox::http {

// ControlPlane over HTTP.
//
// Create and connect are asked for in their second form first; a server that does not know it
// (404 or 405) is asked in the first form, and the form that worked is remembered.
// Repeats: what may be repeated, when the network or the server failed; anything after 429 or 503
//          with Retry-After; create only when nothing of it was sent or the server said "later", and
//          always with the same Idempotency-Key. All within the deadline.
// Owns:    nothing; the client outlives it.
// Threads: any.
class HttpControlPlane final : public api::ControlPlane {
 public:
  // `url` is the base address; the key goes to no other host.
  HttpControlPlane(HttpClient& client, std::string url, base::Secret key)
      : client_(client), url_(std::move(url)), key_(std::move(key)) {}

  base::Result<api::SandboxAccess> create(const api::CreateOptions& options, Deadline deadline,
                                          std::stop_token stop = {}) override;
  base::Result<api::SandboxAccess> connect(const api::SandboxId& id, std::chrono::milliseconds timeout,
                                           Deadline deadline, std::stop_token stop = {}) override;
  base::Result<api::SandboxInfo> get(const api::SandboxId& id, Deadline deadline,
                                     std::stop_token stop = {}) override;
  base::Result<api::SandboxList> list(const api::ListFilter& filter, Deadline deadline,
                                      std::stop_token stop = {}) override;
  base::Result<void> set_timeout(const api::SandboxId& id, std::chrono::milliseconds timeout,
                                 Deadline deadline, std::stop_token stop = {}) override;
  base::Result<bool> pause(const api::SandboxId& id, Deadline deadline, std::stop_token stop = {}) override;
  base::Result<bool> kill(const api::SandboxId& id, Deadline deadline, std::stop_token stop = {}) override;

 private:
  enum class Generation : int { kUnknown = 0, kFirst = 1, kSecond = 2 };
  struct Call;
  struct Reply {
    Response response;
    int attempts = 1;
  };
  base::Result<Reply> send(const Call& call, Deadline deadline, const std::stop_token& stop);
  base::Result<Reply> send_either(Call second, Call first, std::atomic<Generation>& known, Deadline deadline,
                                  const std::stop_token& stop);
  base::Error refusal(const Response& response, const api::SandboxId* id) const;
  base::Error create_refusal(const Response& response, const api::CreateOptions& options) const;

  HttpClient& client_;
  const std::string url_;
  const base::Secret key_;
  std::atomic<Generation> create_form_{Generation::kUnknown};
  std::atomic<Generation> connect_form_{Generation::kUnknown};
};

}  // namespace nearbox::http
