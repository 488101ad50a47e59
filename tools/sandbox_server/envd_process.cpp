// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sys/wait.h>

#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/envd_stream.h"
#include "tools/sandbox_server/processes.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr std::string_view kDefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr std::size_t kMaxArguments = 65536;

struct Selector {
  std::optional<pid_t> pid;
  std::optional<std::string> tag;
};

Selector selector_of(const json& request) {
  Selector out;
  const auto found = request.find("process");
  if (found == request.end() || !found->is_object()) return out;
  if (const auto pid = found->find("pid"); pid != found->end() && pid->is_number_integer())
    out.pid = pid->get<pid_t>();
  if (const auto tag = found->find("tag"); tag != found->end() && tag->is_string())
    out.tag = tag->get<std::string>();
  return out;
}

std::shared_ptr<EnvdProcess> find_process(EnvdContext& context, const json& request) {
  const auto selector = selector_of(request);
  return context.processes.find(selector.pid, selector.tag);
}

RpcReply no_process(const json& request) {
  const auto selector = selector_of(request);
  if (selector.pid) {
    return RpcReply::error("not_found", "process with pid " + std::to_string(*selector.pid) + " not found");
  }
  return RpcReply::error("not_found", "process with tag " + selector.tag.value_or("") + " not found");
}

PtySize size_of(const json& pty) {
  PtySize out;
  const auto size = pty.find("size");
  if (size == pty.end()) return out;
  const auto number = [&](const char* key, std::uint16_t other) {
    const auto value = size->value(key, static_cast<std::uint32_t>(other));
    return static_cast<std::uint16_t>(std::min<std::uint32_t>(value, 65535));
  };
  out.columns = number("cols", out.columns);
  out.rows = number("rows", out.rows);
  return out;
}

std::vector<std::string> environment_of(const EnvdContext& context, const User& user,
                                        const std::map<std::string, std::string>& request) {
  std::map<std::string, std::string> all;
  // In plain mode the machine's own search path; a view of our own has the standard directories.
  const char* path = context.config.mode == IsolationMode::kPlain ? std::getenv("PATH") : nullptr;
  all["PATH"] = path != nullptr ? path : std::string(kDefaultPath);
  all["HOME"] = user.home;
  all["USER"] = user.name;
  all["LOGNAME"] = user.name;
  all["E2B_SANDBOX"] = "true";
  all["NEARBOX_AGENT_BIND"] = "127.0.0.1";  // the network is this machine's: its agents stay off it
  all["E2B_SANDBOX_ID"] = context.config.id;
  all["E2B_TEMPLATE_ID"] = context.config.template_id;
  for (const auto& [name, value] : context.config.envs) all[name] = value;
  for (const auto& [name, value] : request) all[name] = value;
  std::vector<std::string> out;
  for (const auto& [name, value] : all) out.push_back(name + "=" + value);
  return out;
}

// A Start request as a specification; throws json's exceptions for wrong types.
base::Result<ProcessSpec> spec_of(const EnvdContext& context, const json& request, const User& user) {
  ProcessSpec spec;
  const auto& process = request.at("process");
  spec.command = process.value("cmd", "");
  spec.arguments = process.value("args", std::vector<std::string>());
  if (spec.arguments.size() > kMaxArguments) return base::errno_error(EINVAL, "too many arguments");
  spec.request_envs = process.value("envs", std::map<std::string, std::string>());
  if (const auto cwd = process.find("cwd"); cwd != process.end() && cwd->is_string()) {
    spec.requested_directory = cwd->get<std::string>();
  }
  auto directory = resolve_path(spec.requested_directory.value_or(""), user);
  if (!directory) return std::move(directory).error();
  spec.directory = std::move(*directory);
  if (const auto tag = request.find("tag"); tag != request.end() && tag->is_string())
    spec.tag = tag->get<std::string>();
  if (const auto pty = request.find("pty"); pty != request.end() && pty->is_object())
    spec.pty = size_of(*pty);
  if (const auto in = request.find("stdin"); in != request.end() && in->is_boolean())
    spec.with_stdin = in->get<bool>();
  spec.environment = environment_of(context, user, spec.request_envs);
  spec.user = user;
  return spec;
}

json end_event(int wait_status) {
  json end = json::object();
  if (WIFEXITED(wait_status)) {
    const int code = WEXITSTATUS(wait_status);
    end["exited"] = true;
    end["status"] = "exit status " + std::to_string(code);
    if (code != 0) {
      end["exitCode"] = code;
      end["error"] = end["status"];
    }
    return end;
  }
  std::string name = ::strsignal(WTERMSIG(wait_status));
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  end["exitCode"] = -1;
  end["status"] = "signal: " + name;
  end["error"] = end["status"];
  return end;
}

json event_json(const ProcessEvent& event) {
  switch (event.kind) {
    case ProcessEvent::Kind::kStdout:
      return {{"data", {{"stdout", base64_encode(event.data)}}}};
    case ProcessEvent::Kind::kStderr:
      return {{"data", {{"stderr", base64_encode(event.data)}}}};
    case ProcessEvent::Kind::kPty:
      return {{"data", {{"pty", base64_encode(event.data)}}}};
    case ProcessEvent::Kind::kEnd:
      break;
  }
  return {{"end", end_event(event.wait_status)}};
}

bool send_event(Exchange& exchange, json event) {
  return send_message(exchange, {{"event", std::move(event)}});
}

// Sends events until the process has ended, the client is gone, or the deadline has passed.
void stream_events(Exchange& exchange, Subscription& subscription, const StreamLimits& limits) {
  auto next_keepalive = Clock::now() + limits.keepalive;
  while (true) {
    ProcessEvent event;
    if (subscription.pop(event, Clock::now() + kClientCheck) == Subscription::Pop::kEvent) {
      if (!send_event(exchange, event_json(event))) return;
      next_keepalive = Clock::now() + limits.keepalive;
      if (event.kind == ProcessEvent::Kind::kEnd) {
        return end_stream(exchange, {});
      }
      if (!limits.deadline || Clock::now() < *limits.deadline) continue;
    }
    if (limits.deadline && Clock::now() >= *limits.deadline) {
      return end_stream(exchange, RpcReply::error("deadline_exceeded", "context deadline exceeded"));
    }
    if (exchange.stream().peer_gone()) return exchange.close_after();
    if (Clock::now() >= next_keepalive) {
      if (!send_event(exchange, {{"keepalive", json::object()}})) return;
      next_keepalive = Clock::now() + limits.keepalive;
    }
  }
}

void start_process(EnvdContext& context, Exchange& exchange, const json& request, const User& user) {
  const auto limits = limits_of(exchange.head());
  if (!limits.error.empty()) return end_stream(exchange, RpcReply::error("invalid_argument", limits.error));
  auto spec = spec_of(context, request, user);
  if (!spec) return end_stream(exchange, RpcReply::error("invalid_argument", spec.error().context));
  spec->deadline = limits.deadline;
  const auto subscription = std::make_shared<Subscription>();
  const auto process = context.processes.start(std::move(*spec), subscription);
  if (!process) {
    const int err = process.error().as_errno();
    const char* code = err == EINVAL ? "invalid_argument" : err == EAGAIN ? "resource_exhausted" : "internal";
    return end_stream(exchange, RpcReply::error(code, process.error().message()));
  }
  begin_stream(exchange);
  if (send_event(exchange, {{"start", {{"pid", (*process)->pid()}}}}))
    stream_events(exchange, *subscription, limits);
  subscription->close();
}

void connect_process(EnvdContext& context, Exchange& exchange, const json& request) {
  const auto limits = limits_of(exchange.head());
  if (!limits.error.empty()) return end_stream(exchange, RpcReply::error("invalid_argument", limits.error));
  const auto process = find_process(context, request);
  if (!process) return end_stream(exchange, no_process(request));
  const auto subscription = process->subscribe();
  begin_stream(exchange);
  if (send_event(exchange, {{"start", {{"pid", process->pid()}}}}))
    stream_events(exchange, *subscription, limits);
  subscription->close();
}

RpcReply send_input(Exchange& exchange, EnvdProcess& process, const json& input) {
  const bool pty = input.contains("pty");
  if (!pty && !input.contains("stdin")) return RpcReply::error("unimplemented", "invalid input type");
  const auto bytes = base64_decode(input.value(pty ? "pty" : "stdin", ""));
  if (!bytes) return RpcReply::error("invalid_argument", "input is no base64");
  const auto written =
      process.write_input(*bytes, pty, [&] { return !exchange.stream().peer_gone() && !process.ended(); });
  if (!written) return RpcReply::error("internal", "error writing to " + written.error().message());
  return {};
}

void stream_input(EnvdContext& context, Exchange& exchange, json message, std::string& buffer) {
  const auto limits = limits_of(exchange.head());
  if (!limits.error.empty()) return end_stream(exchange, RpcReply::error("invalid_argument", limits.error));
  std::shared_ptr<EnvdProcess> process;
  while (true) {
    if (const auto start = message.find("start"); start != message.end()) {
      process = find_process(context, *start);
      if (!process) return end_stream(exchange, no_process(*start));
    } else if (const auto data = message.find("data"); data != message.end()) {
      if (!process) return end_stream(exchange, RpcReply::error("invalid_argument", "data before start"));
      const auto done = send_input(exchange, *process, data->value("input", json::object()));
      if (!done.code.empty()) return end_stream(exchange, done);
    }
    exchange.stream().set_deadline(limits.deadline);
    auto next = next_message(exchange, buffer);
    exchange.stream().set_deadline(std::nullopt);
    if (!next && next.error().as_errno() == ETIMEDOUT) {
      exchange.close_after();
      return end_stream(exchange, RpcReply::error("deadline_exceeded", "context deadline exceeded"));
    }
    if (!next) return end_stream(exchange, RpcReply::error("invalid_argument", next.error().context));
    if (!*next) break;
    message = std::move(**next);
  }
  begin_stream(exchange);
  (void)send_message(exchange, json::object());
  end_stream(exchange, {});
}

RpcReply list_processes(EnvdContext& context) {
  RpcReply reply;
  for (const auto& process : context.processes.living()) {
    const auto& spec = process->spec();
    json config = {{"cmd", spec.command}};
    if (!spec.arguments.empty()) config["args"] = spec.arguments;
    if (!spec.request_envs.empty()) config["envs"] = spec.request_envs;
    if (spec.requested_directory) config["cwd"] = *spec.requested_directory;
    json entry = {{"config", std::move(config)}, {"pid", process->pid()}};
    if (spec.tag) entry["tag"] = *spec.tag;
    reply.body["processes"].push_back(std::move(entry));
  }
  return reply;
}

RpcReply send_signal(EnvdProcess& process, const json& request) {
  const auto name = request.find("signal");
  int number = 0;
  if (name != request.end() && (*name == "SIGNAL_SIGTERM" || *name == SIGTERM)) number = SIGTERM;
  if (name != request.end() && (*name == "SIGNAL_SIGKILL" || *name == SIGKILL)) number = SIGKILL;
  if (number == 0) return RpcReply::error("unimplemented", "invalid signal");
  if (auto sent = process.signal(number); !sent) {
    return RpcReply::error(sent.error().as_errno() == ESRCH ? "not_found" : "internal",
                           sent.error().message());
  }
  return {};
}

}  // namespace

RpcReply process_call(EnvdContext& context, Exchange& exchange, std::string_view method,
                      const json& request) {
  if (method == "List") return list_processes(context);
  const auto process = find_process(context, request);
  if (!process || (process->ended() && method != "CloseStdin")) return no_process(request);
  if (method == "SendInput") return send_input(exchange, *process, request.value("input", json::object()));
  if (method == "SendSignal") return send_signal(*process, request);
  if (method == "CloseStdin") {
    const auto closed = process->close_stdin();
    return closed ? RpcReply() : RpcReply::error("unknown", closed.error().message());
  }
  if (method == "Update") {
    const auto resized = process->resize(size_of(request.value("pty", json::object())));
    return resized ? RpcReply() : RpcReply::error("internal", resized.error().message());
  }
  return RpcReply::error("unimplemented", "unknown method");
}

void process_stream(EnvdContext& context, Exchange& exchange, std::string_view method, const User& user) {
  std::string buffer;
  auto message = next_message(exchange, buffer);
  if (!message || !*message) {
    return end_stream(exchange,
                      RpcReply::error("invalid_argument", message ? "no message" : message.error().context));
  }
  try {
    if (method == "Start") return start_process(context, exchange, **message, user);
    if (method == "Connect") return connect_process(context, exchange, **message);
    return stream_input(context, exchange, std::move(**message), buffer);
  } catch (const json::exception& e) {
    return end_stream(exchange, RpcReply::error("invalid_argument", e.what()));
  }
}

}  // namespace nearbox::sandbox_server
