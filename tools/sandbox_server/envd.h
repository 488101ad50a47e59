// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "client/base/log.h"
#include "tools/sandbox_server/http.h"
#include "tools/sandbox_server/init.h"
#include "tools/sandbox_server/users.h"

// envd's API inside a sandbox: files, the filesystem service, the process service.
// Source: e2b-dev/infra 54693ff, packages/envd (0.6.13).
namespace nearbox::sandbox_server {

class ProcessTable;
class WatchTable;

inline constexpr std::string_view kEnvdVersion = "0.6.13";
inline constexpr std::size_t kMaxEnvdConnections = 1024;
// Entries of one ListDir reply.
inline constexpr std::size_t kMaxListEntries = 1'000'000;

// What every handler needs.
struct EnvdContext {
  InitConfig config;
  Users users;
  ProcessTable& processes;
  WatchTable& watchers;
  base::Logger& log;
};

// A reply to a unary call, or a Connect error.
struct RpcReply {
  nlohmann::json body = nlohmann::json::object();
  std::string code;  // empty: success
  std::string message;

  static RpcReply error(std::string_view code, std::string message) {
    return {nlohmann::json::object(), std::string(code), std::move(message)};
  }
};

// Serves one connected or listening socket until the process is told to end. `listen_fd` is taken
// over. Runs in the sandbox's view, as a child of its init. Returns an exit code.
int envd_main(int listen_fd, const InitConfig& config);

// {"code","message"} with `status`, as envd's plain routes answer.
void reply_error(Exchange& exchange, int status, std::string_view message);

// GET and POST /files; the token or signature has been checked.
void serve_file_download(EnvdContext& context, Exchange& exchange, const User& default_user);
void serve_file_upload(EnvdContext& context, Exchange& exchange, const User& default_user);

// filesystem.Filesystem's unary methods; `method` without the service's name.
RpcReply filesystem_call(EnvdContext& context, const User& user, std::string_view method,
                         const nlohmann::json& request);

// Its WatchDir, and the watchers that are asked for their events.
void watch_stream(EnvdContext& context, Exchange& exchange, const User& user);
RpcReply watcher_call(EnvdContext& context, const User& user, std::string_view method,
                      const nlohmann::json& request);

// A file or directory as EntryInfo; nothing when it is not there.
std::optional<nlohmann::json> entry_of(const std::string& path, const IdNames& names);

// process.Process's unary methods.
RpcReply process_call(EnvdContext& context, Exchange& exchange, std::string_view method,
                      const nlohmann::json& request);
// process.Process's Start, Connect and StreamInput.
void process_stream(EnvdContext& context, Exchange& exchange, std::string_view method, const User& user);

// The end of a streaming reply: success, or an error.
std::string end_envelope(const RpcReply& reply);

// The metadata kept with a file (extended attributes "user.e2b.*").
std::map<std::string, std::string> read_metadata(const std::string& path);

}  // namespace nearbox::sandbox_server
