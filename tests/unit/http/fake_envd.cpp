// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/http/fake_envd.h"

#include "client/http/connect_stream.h"

namespace nearbox::test {
namespace {

using nlohmann::json;

std::string decode(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      out += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string query(const std::string& target, const std::string& name) {
  auto at = target.find('?');
  while (at != std::string::npos) {
    const auto end = target.find('&', at + 1);
    const std::string pair = target.substr(at + 1, end == std::string::npos ? end : end - at - 1);
    if (pair.starts_with(name + "=")) return decode(pair.substr(name.size() + 1));
    at = end;
  }
  return "";
}

json entry_json(const std::string& path, const FakeEnvd::File& file) {
  return {
      {"name", path.substr(path.rfind('/') + 1)},  {"path", path},      {"type", "FILE_TYPE_FILE"},
      {"size", std::to_string(file.bytes.size())}, {"mode", file.mode}, {"modifiedTime", file.modified_at}};
}

void not_found(FaultConnection& c) {
  c.respond(404, R"({"code":"not_found","message":"no such file"})", "Content-Type: application/json\r\n");
}

}  // namespace

FakeEnvd::FakeEnvd() : server_([this](FaultConnection& c, FaultRequest& r) { return handle(c, r); }) {}

void FakeEnvd::set_run(Run run) {
  base::MutexLock lock(mu_);
  run_ = std::move(run);
}
void FakeEnvd::set_before(std::function<bool(FaultConnection&, FaultRequest&)> before) {
  base::MutexLock lock(mu_);
  before_ = std::move(before);
}
void FakeEnvd::put(const std::string& path, File file) {
  base::MutexLock lock(mu_);
  files_[path] = std::move(file);
}
std::map<std::string, FakeEnvd::File> FakeEnvd::files() {
  base::MutexLock lock(mu_);
  return files_;
}
std::vector<std::string> FakeEnvd::commands() {
  base::MutexLock lock(mu_);
  return commands_;
}
std::vector<FaultRequest> FakeEnvd::requests() {
  base::MutexLock lock(mu_);
  return requests_;
}
std::size_t FakeEnvd::uploads() {
  base::MutexLock lock(mu_);
  return uploads_;
}

bool FakeEnvd::handle(FaultConnection& c, FaultRequest& r) {
  std::function<bool(FaultConnection&, FaultRequest&)> before;
  {
    base::MutexLock lock(mu_);
    before = before_;
  }
  if (before && before(c, r)) return false;
  if (!c.read_body(r)) return false;
  {
    base::MutexLock lock(mu_);
    requests_.push_back(r);
  }
  const bool strict = !r.header("e2b-sandbox-id").empty() && r.header("e2b-sandbox-port") == "49983" &&
                      r.header("connect-timeout-ms").empty() && r.header("keepalive-ping-interval") != "0";
  if (!strict) {
    c.respond(418, "a header is wrong");
  } else if (r.header("x-access-token") != "tok") {
    c.respond(401, R"({"message":"unauthorized","code":401})");
  } else if (r.target.starts_with("/health")) {
    c.respond(204, "");
  } else if (r.target.starts_with("/files?")) {
    handle_upload(c, r);
  } else if (r.target == "/process.Process/Start") {
    handle_start(c, r);
  } else {
    handle_rpc(c, r);
  }
  return true;
}

void FakeEnvd::handle_upload(FaultConnection& c, const FaultRequest& r) {
  const std::string path = query(r.target, "path");
  base::MutexLock lock(mu_);
  if (r.method == "GET") {
    const auto it = files_.find(path);
    it == files_.end() ? c.respond(404, R"({"code":404,"message":"missing"})")
                       : c.respond(200, it->second.bytes);
    return;
  }
  ++uploads_;
  files_[path] = File{r.body};
  c.respond(200, "[]");
}

void FakeEnvd::handle_rpc(FaultConnection& c, const FaultRequest& r) {
  const json body = json::parse(r.body, nullptr, false);
  const std::string method = r.target.substr(r.target.rfind('/') + 1);
  base::MutexLock lock(mu_);
  if (method == "Move") {
    const std::string from = body["source"], to = body["destination"];
    if (files_.count(from) == 0) return not_found(c);
    files_[to] = files_[from];
    files_.erase(from);
    c.respond(200, json{{"entry", entry_json(to, files_[to])}}.dump());
  } else if (method == "Stat") {
    const std::string path = body["path"];
    if (files_.count(path) == 0) return not_found(c);
    c.respond(200, json{{"entry", entry_json(path, files_[path])}}.dump());
  } else if (method == "Remove") {
    files_.erase(body["path"].get<std::string>());
    c.respond(200, "{}");
  } else if (method == "ListDir") {
    json entries = json::array();
    const std::string dir = body["path"].get<std::string>() + "/";
    for (const auto& [path, file] : files_) {
      if (path.starts_with(dir)) entries.push_back(entry_json(path, file));
    }
    c.respond(200, json{{"entries", entries}}.dump());
  } else {
    c.respond(404, "404 page not found");
  }
}

void FakeEnvd::handle_start(FaultConnection& c, const FaultRequest& r) {
  http::Envelope envelope;
  if (*http::parse_envelope(r.body, envelope) != r.body.size() ||
      r.header("authorization") != "Basic cm9vdDo=") {
    c.respond(418, "start is wrong");
    return;
  }
  const json process = json::parse(envelope.payload)["process"];
  const std::string cmd = process["cmd"];
  const auto args = process["args"].get<std::vector<std::string>>();
  RunReply reply;
  {
    base::MutexLock lock(mu_);
    commands_.push_back(cmd + (args.empty() ? "" : " " + args[0]));
    if (cmd == "chmod") {
      files_[args.at(1)].mode = 0755;
    } else if (run_) {
      reply = run_(cmd, args);
    }
  }
  const auto send = [&](const json& event) { return http::make_envelope(json{{"event", event}}.dump()); };
  std::string body = send({{"start", {{"pid", 7}}}});
  if (!reply.out.empty()) body += send({{"data", {{"stdout", http::base64_encode(reply.out)}}}});
  if (!reply.err.empty()) body += send({{"data", {{"stderr", http::base64_encode(reply.err)}}}});
  body += send({{"end", {{"exited", true}, {"exitCode", reply.exit_code}, {"status", "exit status"}}}});
  body += std::string("\2\0\0\0\2{}", 7);
  c.respond(200, body, "Content-Type: application/connect+json\r\n");
}

}  // namespace nearbox::test
