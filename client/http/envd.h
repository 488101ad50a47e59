// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "client/api/envd.h"
#include "client/http/data_plane.h"
#include "client/http/http_client.h"

namespace nearbox::http {

inline constexpr std::size_t kMaxUnaryBody = 256 * 1024;  // of any other call than ListDir
inline constexpr std::size_t kMaxListBody = 64 * 1024 * 1024;
inline constexpr int kKeepaliveSeconds = 20;                 // envd sends an event after so long a silence
inline constexpr std::chrono::seconds kStreamIdleLimit{75};  // then the stream is taken for dead

// Envd over HTTP and Connect with JSON.
//
// A run never sends Connect-Timeout-Ms (envd would kill the process at that time) nor a keepalive
// interval of 0 (it would crash envd).
// Owns:    nothing; the client outlives it.
// Threads: any.
class HttpEnvd final : public api::Envd {
 public:
  // `sandbox` is for error texts; `route` leads to kEnvdPort.
  HttpEnvd(HttpClient& client, api::SandboxId sandbox, Route route)
      : client_(client), sandbox_(std::move(sandbox)), route_(std::move(route)) {}

  base::Result<bool> healthy(Deadline deadline, std::stop_token stop = {}) override;
  base::Result<void> upload(int local_fd, std::uint64_t size, const std::string& remote_path,
                            const std::string& user, Deadline deadline, std::stop_token stop = {}) override;
  base::Result<void> download(const std::string& remote_path,
                              const std::function<base::Result<void>(std::string_view)>& sink,
                              Deadline deadline, std::stop_token stop = {}) override;
  base::Result<api::RemoteEntry> stat(const std::string& path, Deadline deadline,
                                      std::stop_token stop = {}) override;
  base::Result<api::RemoteEntry> make_dir(const std::string& path, Deadline deadline,
                                          std::stop_token stop = {}) override;
  base::Result<api::RemoteEntry> move(const std::string& from, const std::string& to, Deadline deadline,
                                      std::stop_token stop = {}) override;
  base::Result<void> remove(const std::string& path, Deadline deadline, std::stop_token stop = {}) override;
  base::Result<std::vector<api::RemoteEntry>> list_dir(const std::string& path, std::uint32_t depth,
                                                       Deadline deadline, std::stop_token stop = {}) override;
  base::Result<api::RunResult> run(const api::RunSpec& spec, const api::RunEvents& events, Deadline deadline,
                                   std::stop_token stop = {}) override;
  base::Result<bool> signal(std::uint32_t pid, api::RunSignal signal, Deadline deadline,
                            std::stop_token stop = {}) override;
  base::Result<void> send_stdin(std::uint32_t pid, std::string_view bytes, Deadline deadline,
                                std::stop_token stop = {}) override;
  base::Result<void> close_stdin(std::uint32_t pid, Deadline deadline, std::stop_token stop = {}) override;

 private:
  enum class Repeat : bool { kNo, kYes };
  struct RpcBody;  // JSON, kept out of this header
  Request request(std::string method, const std::string& path_and_query) const;
  // The body of a 2xx answer; `subject` is the path an error is about.
  base::Result<std::string> unary(const std::string& method, const RpcBody& body, const std::string& subject,
                                  Repeat repeat, Deadline deadline, const std::stop_token& stop,
                                  std::size_t max_body = kMaxUnaryBody);
  base::Error refusal(const Response& response, const std::string& subject) const;

  HttpClient& client_;
  const api::SandboxId sandbox_;
  const Route route_;
};

}  // namespace nearbox::http
