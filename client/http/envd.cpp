// SPDX-License-Identifier: Apache-2.0
#include "client/http/envd.h"

#include <nlohmann/json.hpp>

#include "client/api/error_code.h"
#include "client/api/remote_errno.h"
#include "client/http/connect_stream.h"
#include "client/http/retry.h"
#include "client/http/sandbox_json.h"

namespace nearbox::http {
namespace {

using api::ErrorCode;
using nlohmann::json;

// Strict: a path with its odd bytes replaced would name another file. EILSEQ for what is not UTF-8.
base::Result<std::string> dump(const json& object, const std::string& subject) {
  try {
    return object.dump();
  } catch (const json::exception&) {
    return base::errno_error(EILSEQ, subject + ": envd takes UTF-8 alone");
  }
}

std::string files_target(const std::string& path, const std::string& user) {
  std::string target = "/files?path=" + percent_encode(path);
  if (!user.empty()) target += "&username=" + percent_encode(user);
  return target;
}

// The message of a refusal, JSON or plain text.
std::string message_of(const Response& response) {
  std::string message = error_message(response.body);
  if (message.empty() && !response.body.starts_with('{')) message = api::printable(response.body);
  while (message.ends_with(' ')) message.pop_back();
  return message.empty() ? "HTTP " + std::to_string(response.status) : message;
}

}  // namespace

struct HttpEnvd::RpcBody {
  nlohmann::json json;
};

namespace {

base::Error rpc_failure(const RpcError& error, const std::string& subject) {
  if (error.code == "not_found" && !subject.empty()) {
    return api::fill_error(ErrorCode::kRemoteNotFound, {{"PATH", subject}});
  }
  if (error.code == "permission_denied" && !subject.empty()) {
    return api::fill_error(ErrorCode::kRemotePermission, {{"PATH", subject}});
  }
  if (error.message.find("no space left on device") != std::string::npos) {
    return api::make_error(ErrorCode::kRemoteNoSpace, "No space left in the sandbox: " + error.message);
  }
  if (error.code == "unauthenticated") {
    return api::fill_error(ErrorCode::kArgInvalid, {{"NAME", "user"}, {"WHY", error.message}});
  }
  const std::string where = subject.empty() ? "" : subject + ": ";
  return base::errno_error(api::errno_of_rpc(error.code), where + error.message);
}

base::Error broken_answer(const std::string& url) {
  return api::fill_error(ErrorCode::kNetUnreachable,
                         {{"HOST", host_of(url)}, {"WHY", "its answer is not what envd promises"}});
}

json process_of(std::uint32_t pid) { return {{"pid", pid}}; }

json start_body(const api::RunSpec& spec) {
  json process = {{"cmd", spec.cmd}, {"args", spec.args}};
  if (!spec.envs.empty()) process["envs"] = spec.envs;
  if (!spec.cwd.empty()) process["cwd"] = spec.cwd;
  return {{"process", process}, {"stdin", spec.use_stdin}};
}

// What one run has told so far.
struct RunProgress {
  EnvelopeReader reader;
  api::RunResult result;
  bool ended = false;
  std::optional<RpcError> failure;
};

base::Result<void> take_event(RunProgress& run, const api::RunEvents& events, const Envelope& envelope) {
  if (envelope.is_end()) {
    run.failure = parse_end_message(envelope.payload);
    return {};
  }
  auto event = parse_process_event(envelope.payload);
  if (!event) return base::errno_error(EPROTO, "event of a process");
  switch (event->kind) {
    case ProcessEvent::Kind::kStart:
      run.result.pid = event->pid;
      if (events.on_start) events.on_start(event->pid);
      return {};
    case ProcessEvent::Kind::kStdout:
      if (events.on_stdout) return events.on_stdout(event->data);
      return {};
    case ProcessEvent::Kind::kStderr:
      if (events.on_stderr) return events.on_stderr(event->data);
      return {};
    case ProcessEvent::Kind::kEnd: {
      const auto pid = run.result.pid;
      run.result = std::move(event->end);
      run.result.pid = pid;
      run.ended = true;
      return {};
    }
    case ProcessEvent::Kind::kKeepalive:
    case ProcessEvent::Kind::kOther:
      return {};
  }
  return {};
}

}  // namespace

Request HttpEnvd::request(std::string method, const std::string& path_and_query) const {
  Request out;
  out.method = std::move(method);
  out.url = route_.base_url + path_and_query;
  out.headers = route_.headers;
  out.secrets = route_.secrets;
  return out;
}

base::Error HttpEnvd::refusal(const Response& response, const std::string& subject) const {
  const std::string message = message_of(response);
  switch (response.status) {
    case 401:
      return api::make_error(ErrorCode::kAuthRejected,
                             "The sandbox refused its access token (HTTP 401): " + message);
    case 403:
      return api::make_error(ErrorCode::kAuthRejected, "The sandbox refused access (HTTP 403): " + message);
    case 404:
      if (!subject.empty()) return api::fill_error(ErrorCode::kRemoteNotFound, {{"PATH", subject}});
      break;
    case 409:
      return api::fill_error(ErrorCode::kSandboxBusy, {{"ID", sandbox_.str()}, {"WHY", message}});
    case 429:
      return api::make_error(ErrorCode::kRateLimited, "Rate limit exceeded: " + message);
    case 502:
      // The edge says the same for "no such sandbox" and "its port does not answer": the text differs.
      if (message.find("not found") != std::string::npos) {
        return api::fill_error(ErrorCode::kSandboxNotFound, {{"ID", sandbox_.str()}});
      }
      return api::fill_error(ErrorCode::kNetUnreachable,
                             {{"HOST", "sandbox " + sandbox_.str()}, {"WHY", message}});
    case 503:
    case 504:
      return api::fill_error(ErrorCode::kNetUnreachable,
                             {{"HOST", "sandbox " + sandbox_.str()}, {"WHY", message}});
    case 507:
      return api::make_error(ErrorCode::kRemoteNoSpace, "No space left in the sandbox: " + message);
    default:
      break;
  }
  const int value =
      message.find("text file busy") != std::string::npos ? ETXTBSY : api::errno_of_http(response.status);
  return base::errno_error(value, subject.empty() ? message : subject + ": " + message);
}

base::Result<std::string> HttpEnvd::unary(const std::string& method, const RpcBody& body,
                                          const std::string& subject, Repeat repeat, Deadline deadline,
                                          const std::stop_token& stop, std::size_t max_body) {
  auto text = dump(body.json, subject);
  if (!text) return std::move(text).error();
  Request call = request("POST", "/" + method);
  call.headers.push_back({"Content-Type", "application/json"});
  call.headers.push_back({"Connect-Protocol-Version", "1"});
  call.body = std::move(*text);
  call.max_body = max_body;
  call.repeatable = repeat == Repeat::kYes;
  for (int attempt = 0;; ++attempt) {
    auto response = client_.perform(call, deadline, stop);
    const bool again = call.repeatable && attempt + 1 < kMaxAttempts &&
                       (response ? response->status == 503 || response->status == 429
                                 : api::is(response.error(), ErrorCode::kNetUnreachable));
    if (again && pause_for(backoff(attempt), deadline, stop)) continue;
    if (!response) return std::move(response).error();
    if (response->ok()) return std::move(response->body);
    const auto error = parse_rpc_error(response->body);
    const bool of_connect = error && !error->code.empty();
    return of_connect ? rpc_failure(*error, subject) : refusal(*response, subject);
  }
}

base::Result<bool> HttpEnvd::healthy(Deadline deadline, std::stop_token stop) {
  Request call = request("GET", "/health");
  call.repeatable = true;
  auto response = client_.perform(call, deadline, stop);
  if (!response) return std::move(response).error();
  if (response->ok()) return true;
  if (response->status == 502) return false;
  return refusal(*response, "");
}

base::Result<void> HttpEnvd::upload(int local_fd, std::uint64_t size, const std::string& remote_path,
                                    const std::string& user, Deadline deadline, std::stop_token stop) {
  Request call = request("POST", files_target(remote_path, user));
  call.headers.push_back({"Content-Type", "application/octet-stream"});
  call.file = FileBody{local_fd, size};
  auto response = client_.perform(call, deadline, stop);
  if (!response) return std::move(response).error().during("upload " + remote_path);
  if (!response->ok()) return refusal(*response, remote_path);
  return {};
}

base::Result<void> HttpEnvd::download(const std::string& remote_path,
                                      const std::function<base::Result<void>(std::string_view)>& sink,
                                      Deadline deadline, std::stop_token stop) {
  Request call = request("GET", files_target(remote_path, ""));
  // envd ends a compressed body normally when its read fails in the middle: identity has a length.
  call.headers.push_back({"Accept-Encoding", "identity"});
  call.sink = sink;
  auto response = client_.perform(call, deadline, stop);
  if (!response) return std::move(response).error().during("download " + remote_path);
  if (!response->ok()) return refusal(*response, remote_path);
  return {};
}

base::Result<api::RemoteEntry> HttpEnvd::stat(const std::string& path, Deadline deadline,
                                              std::stop_token stop) {
  auto body =
      unary("filesystem.Filesystem/Stat", RpcBody{{{"path", path}}}, path, Repeat::kYes, deadline, stop);
  if (!body) return std::move(body).error();
  auto entry = parse_entry(*body);
  if (!entry) return broken_answer(route_.base_url);
  return std::move(*entry);
}

base::Result<api::RemoteEntry> HttpEnvd::make_dir(const std::string& path, Deadline deadline,
                                                  std::stop_token stop) {
  auto body =
      unary("filesystem.Filesystem/MakeDir", RpcBody{{{"path", path}}}, path, Repeat::kNo, deadline, stop);
  if (!body) return std::move(body).error();
  auto entry = parse_entry(*body);
  if (!entry) return broken_answer(route_.base_url);
  return std::move(*entry);
}

base::Result<api::RemoteEntry> HttpEnvd::move(const std::string& from, const std::string& to,
                                              Deadline deadline, std::stop_token stop) {
  auto body = unary("filesystem.Filesystem/Move", RpcBody{{{"source", from}, {"destination", to}}}, from,
                    Repeat::kNo, deadline, stop);
  if (!body) return std::move(body).error();
  auto entry = parse_entry(*body);
  if (!entry) return broken_answer(route_.base_url);
  return std::move(*entry);
}

base::Result<void> HttpEnvd::remove(const std::string& path, Deadline deadline, std::stop_token stop) {
  auto body =
      unary("filesystem.Filesystem/Remove", RpcBody{{{"path", path}}}, path, Repeat::kYes, deadline, stop);
  if (!body) return std::move(body).error();
  return {};
}

base::Result<std::vector<api::RemoteEntry>> HttpEnvd::list_dir(const std::string& path, std::uint32_t depth,
                                                               Deadline deadline, std::stop_token stop) {
  auto body = unary("filesystem.Filesystem/ListDir", RpcBody{{{"path", path}, {"depth", depth}}}, path,
                    Repeat::kYes, deadline, stop, kMaxListBody);
  if (!body) return std::move(body).error();
  auto entries = parse_entries(*body);
  if (!entries) return broken_answer(route_.base_url);
  return std::move(*entries);
}

base::Result<api::RunResult> HttpEnvd::run(const api::RunSpec& spec, const api::RunEvents& events,
                                           Deadline deadline, std::stop_token stop) {
  Request call = request("POST", "/process.Process/Start");
  call.headers.push_back({"Content-Type", "application/connect+json"});
  call.headers.push_back({"Connect-Protocol-Version", "1"});
  call.headers.push_back({"Keepalive-Ping-Interval", std::to_string(kKeepaliveSeconds)});
  if (!spec.user.empty()) {
    call.headers.push_back({"Authorization", "Basic " + base64_encode(spec.user + ":")});
  }
  auto body = dump(start_body(spec), spec.cmd);
  if (!body) return std::move(body).error();
  call.body = make_envelope(*body);
  call.idle_limit = kStreamIdleLimit;
  RunProgress progress;
  const EnvelopeReader::Take take = [&](const Envelope& e) { return take_event(progress, events, e); };
  call.sink = [&](std::string_view bytes) { return progress.reader.feed(bytes, take); };
  auto response = client_.perform(call, deadline, stop);
  if (!response) {
    auto error = std::move(response).error();
    const bool foreign = error.code == std::make_error_code(std::errc::protocol_error) ||
                         error.code == std::make_error_code(std::errc::message_size);
    return foreign ? broken_answer(route_.base_url) : std::move(error);
  }
  if (!response->ok()) {
    const auto error = parse_rpc_error(response->body);
    return error && !error->code.empty() ? rpc_failure(*error, spec.cwd) : refusal(*response, "");
  }
  if (progress.failure) return rpc_failure(*progress.failure, spec.cwd);
  if (!progress.ended || !progress.reader.ended()) {
    return api::fill_error(ErrorCode::kNetUnreachable, {{"HOST", "sandbox " + sandbox_.str()},
                                                        {"WHY", "the output of the command was cut"}});
  }
  return std::move(progress.result);
}

base::Result<bool> HttpEnvd::signal(std::uint32_t pid, api::RunSignal signal, Deadline deadline,
                                    std::stop_token stop) {
  const char* name = signal == api::RunSignal::kTerm ? "SIGNAL_SIGTERM" : "SIGNAL_SIGKILL";
  const std::string subject = "process " + std::to_string(pid);
  auto body = unary("process.Process/SendSignal", RpcBody{{{"process", process_of(pid)}, {"signal", name}}},
                    subject, Repeat::kYes, deadline, stop);
  if (body) return true;
  if (api::is(body.error(), ErrorCode::kRemoteNotFound)) return false;
  return std::move(body).error();
}

base::Result<void> HttpEnvd::send_stdin(std::uint32_t pid, std::string_view bytes, Deadline deadline,
                                        std::stop_token stop) {
  if (bytes.size() > api::kMaxStdinPiece) return base::errno_error(EMSGSIZE, "input of a process");
  const json input = {{"stdin", base64_encode(bytes)}};
  auto body = unary("process.Process/SendInput", RpcBody{{{"process", process_of(pid)}, {"input", input}}},
                    "process " + std::to_string(pid), Repeat::kNo, deadline, stop);
  if (!body) return std::move(body).error();
  return {};
}

base::Result<void> HttpEnvd::close_stdin(std::uint32_t pid, Deadline deadline, std::stop_token stop) {
  auto body = unary("process.Process/CloseStdin", RpcBody{{{"process", process_of(pid)}}},
                    "process " + std::to_string(pid), Repeat::kYes, deadline, stop);
  if (!body) return std::move(body).error();
  return {};
}

}  // namespace nearbox::http
