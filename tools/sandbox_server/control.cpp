// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/control.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>

#include <nlohmann/json.hpp>

#include "tools/sandbox_server/control_spec.h"
#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxPage = 100;
constexpr std::size_t kMaxMetricIds = 100;
// How long a body may take. Source: e2b-dev/infra 54693ff, packages/api/main.go.
constexpr std::chrono::seconds kBodyTimeout{10};

std::int64_t nanoseconds_of(WallClock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

std::string time_text(WallClock::time_point time) {
  constexpr std::int64_t kBillion = 1'000'000'000;
  const auto ns = nanoseconds_of(time);
  return rfc3339(ns / kBillion, ns % kBillion);
}

void reply_json(Exchange& exchange, int status, const json& body, Headers headers = {}) {
  headers.add("Content-Type", "application/json; charset=utf-8");
  (void)exchange.reply(status, std::move(headers), body.dump(-1, ' ', false, json::error_handler_t::replace));
}

const char* state_name(Sandbox::State state) {
  return state == Sandbox::State::kPaused ? "paused" : "running";
}

json created(const Sandbox& sandbox) {
  const auto& spec = sandbox.spec();
  json out = {{"sandboxID", sandbox.id()},    {"templateID", spec.template_id}, {"alias", spec.template_id},
              {"clientID", kClientId},        {"envdVersion", kEnvdVersion},    {"domain", nullptr},
              {"trafficAccessToken", nullptr}};
  if (!sandbox.token().empty()) out["envdAccessToken"] = sandbox.token().reveal();
  if (!sandbox.traffic_token().empty()) out["trafficAccessToken"] = sandbox.traffic_token().reveal();
  return out;
}

json listed(const Sandbox& sandbox, const Sandbox::Snapshot& now) {
  const auto& spec = sandbox.spec();
  return {{"sandboxID", sandbox.id()},
          {"templateID", spec.template_id},
          {"alias", spec.template_id},
          {"clientID", kClientId},
          {"envdVersion", kEnvdVersion},
          {"startedAt", time_text(now.started)},
          {"endAt", time_text(now.ends)},
          // Sandboxes have no limits of their own here; these are E2B's defaults.
          {"cpuCount", 2},
          {"memoryMB", 1024},
          {"diskSizeMB", 10240},
          {"state", state_name(now.state)},
          {"metadata", spec.metadata},
          {"volumeMounts", json::array()}};
}

json detail(const Sandbox& sandbox, const Sandbox::Snapshot& now) {
  const auto& spec = sandbox.spec();
  auto out = listed(sandbox, now);
  if (!sandbox.token().empty()) out["envdAccessToken"] = sandbox.token().reveal();
  out["domain"] = nullptr;
  out["allowInternetAccess"] = spec.internet ? json(*spec.internet) : json(nullptr);
  out["network"] = {{"allowPublicTraffic", spec.public_traffic}};
  if (!spec.mask_host.empty()) out["network"]["maskRequestHost"] = spec.mask_host;
  out["lifecycle"] = {{"autoResume", spec.auto_resume}, {"onTimeout", spec.auto_pause ? "pause" : "kill"}};
  return out;
}

json metric_json(const Usage& usage) {
  return {{"timestamp", time_text(usage.time)}, {"timestampUnix", nanoseconds_of(usage.time) / 1'000'000'000},
          {"cpuCount", usage.cpu_count},        {"cpuUsedPct", usage.cpu_used_pct},
          {"memUsed", usage.mem_used},          {"memTotal", usage.mem_total},
          {"memCache", usage.mem_cache},        {"diskUsed", usage.disk_used},
          {"diskTotal", usage.disk_total}};
}

// What other parts of E2B's API begin with; none of them is here.
bool elsewhere(const std::string& first) {
  static constexpr std::array<std::string_view, 9> kParts{"templates", "volumes",       "volumecontent",
                                                          "secrets",   "teams",         "nodes",
                                                          "api-keys",  "access-tokens", "events"};
  return std::find(kParts.begin(), kParts.end(), first) != kParts.end();
}

bool generation(const std::string& part) {
  return part.size() == 2 && part[0] == 'v' && part[1] >= '2' && part[1] <= '9';
}

// The status of a sandbox that could not be started.
int status_of(const base::Error& error) {
  switch (error.as_errno()) {
    case EAGAIN:
      return 429;
    case ECANCELED:
      return 503;
    case EALREADY:
      return 409;
    case ESRCH:
      return 404;
    case ENOSPC:
    case EDQUOT:
      return 507;
    default:
      return 500;
  }
}

struct ListedItem {
  std::shared_ptr<Sandbox> sandbox;
  Sandbox::Snapshot now;
};

// One request to the control plane; ApiError and json's exceptions leave it.
class ControlCall {
 public:
  ControlCall(SandboxTable& table, Exchange& exchange, base::Logger& log)
      : table_(table), exchange_(exchange), head_(exchange.head()), log_(log) {}

  void run() {
    std::vector<std::string> parts;
    std::string_view rest(head_.path);
    while (!rest.empty()) {
      rest.remove_prefix(1);
      const auto slash = rest.find('/');
      parts.emplace_back(rest.substr(0, slash));
      rest = slash == std::string_view::npos ? std::string_view() : rest.substr(slash);
    }
    bool v2 = false;
    if (!parts.empty() && generation(parts[0])) {
      v2 = true;
      parts.erase(parts.begin());
    }
    if (parts.empty()) throw ApiError{404, "no such route"};
    if (parts[0] == "snapshots") return snapshots(parts.size());
    if (elsewhere(parts[0])) {
      // To a client that deletes a snapshot: there is none of that name.
      if (head_.method == "DELETE" && parts.size() == 2 && parts[1] != "tags")
        throw ApiError{404, "\"" + parts[1] + "\" not found"};
      throw ApiError{501, "this server does not implement " + parts[0]};
    }
    if (parts[0] != "sandboxes") throw ApiError{404, "no such route"};
    if (parts.size() == 1) return collection(v2);
    if (parts.size() == 2 && parts[1] == "metrics") return all_metrics();
    const auto id = parts[1].substr(0, parts[1].find('-'));
    if (!valid_sandbox_id(id)) throw ApiError{400, "invalid sandbox ID"};
    if (parts.size() == 2) return item(id);
    if (parts.size() == 3) return action(id, parts[2], v2);
    throw ApiError{404, "no such route"};
  }

 private:
  json body(bool required) {
    exchange_.stream().set_deadline(std::chrono::steady_clock::now() + kBodyTimeout);
    const auto text = exchange_.read_all(kMaxJsonBody);
    exchange_.stream().set_deadline(std::nullopt);
    if (!text) {
      const int err = text.error().as_errno();
      exchange_.close_after();
      throw ApiError{err == EMSGSIZE    ? 413
                     : err == ETIMEDOUT ? 408
                                        : 400,
                     "request body: " + text.error().message()};
    }
    if (text->empty() && !required) return json::object();
    auto out = json::parse(*text, nullptr, false);
    if (out.is_null() && !required) return json::object();
    if (!out.is_object()) throw ApiError{400, "validation error: request body has an error: no JSON object"};
    return out;
  }

  std::shared_ptr<Sandbox> need(const std::string& id) {
    auto sandbox = table_.find(id);
    if (!sandbox) throw ApiError{404, "sandbox \"" + id + "\" not found"};
    return sandbox;
  }

  void no_content() { (void)exchange_.reply(204, {}, ""); }

  void collection(bool v2) {
    if (head_.method == "POST") return create(v2);
    if (head_.method == "GET") return list(v2);
    throw ApiError{405, "method not allowed"};
  }

  void create(bool v2) {
    auto spec = spec_of(body(true), v2);
    if (const auto key = head_.headers.get("Idempotency-Key"))
      spec.idempotency_key = idempotency_key_of(*key);
    auto made = table_.create(std::move(spec));
    if (!made) {
      log_.error("sandbox create failed error=" + made.error().message());
      throw ApiError{status_of(made.error()), made.error().message()};
    }
    log_.info("sandbox created id=" + (*made)->id());
    table_.wake();
    reply_json(exchange_, 201, created(**made));
  }

  void list(bool v2) {
    const auto query = parse_query(head_.query);
    const auto value = [&](const char* key) {
      const auto found = query.find(key);
      return found == query.end() ? std::string() : found->second;
    };
    const auto order = value("order");
    if (!order.empty() && order != "asc" && order != "desc") throw ApiError{400, "invalid order"};
    const bool ascending = order == "asc";
    std::size_t limit = v2 ? kMaxPage : kMaxSandboxes;
    if (const auto text = value("limit"); v2 && !text.empty()) {
      const auto number = parse_number(text);
      if (!number || *number < 1 || *number > kMaxPage) throw ApiError{400, "validation error: limit"};
      limit = static_cast<std::size_t>(*number);
    }
    const auto states = value("state");
    const bool running = states.empty() || states.find("running") != std::string::npos;
    const bool paused = v2 && (states.empty() || states.find("paused") != std::string::npos);
    const auto filter = decode_metadata_filter(value("metadata"));
    std::optional<std::int64_t> after_ms;
    if (const auto text = value("startedAfter"); !text.empty()) {
      after_ms = parse_rfc3339(text);
      if (!after_ms) throw ApiError{400, "invalid startedAfter"};
    }
    std::size_t total_running = 0;
    std::vector<ListedItem> items;
    for (auto& sandbox : table_.all()) {
      const auto now = sandbox->snapshot();
      if (now.state == Sandbox::State::kEnded) continue;
      if (now.state == Sandbox::State::kRunning) ++total_running;
      if (!(now.state == Sandbox::State::kRunning ? running : paused)) continue;
      if (!matches(*sandbox, filter) || (after_ms && nanoseconds_of(now.started) / 1'000'000 < *after_ms))
        continue;
      const auto wanted = value("template");
      if (!wanted.empty() && sandbox->spec().template_id != wanted) continue;
      items.push_back({std::move(sandbox), now});
    }
    send_page(std::move(items), ascending, limit, value("nextToken"), v2,
              running ? std::optional(total_running) : std::nullopt);
  }

  static bool matches(const Sandbox& sandbox, const std::map<std::string, std::string>& filter) {
    const auto& metadata = sandbox.spec().metadata;
    return std::all_of(filter.begin(), filter.end(), [&](const auto& pair) {
      const auto found = metadata.find(pair.first);
      return found != metadata.end() && found->second == pair.second;
    });
  }

  void send_page(std::vector<ListedItem> items, bool ascending, std::size_t limit, const std::string& token,
                 bool v2, std::optional<std::size_t> total_running) {
    const auto key = [](const ListedItem& item) {
      return std::make_pair(nanoseconds_of(item.now.started), item.sandbox->id());
    };
    std::sort(items.begin(), items.end(),
              [&](const auto& a, const auto& b) { return ascending ? key(a) < key(b) : key(b) < key(a); });
    if (!token.empty()) {
      const auto last = decode_page_token(token, ascending);
      if (!last) throw ApiError{400, "invalid next token"};
      const auto mark = std::make_pair(last->started_ns, last->id);
      items.erase(
          std::remove_if(items.begin(), items.end(),
                         [&](const auto& item) { return ascending ? key(item) <= mark : key(item) >= mark; }),
          items.end());
    }
    Headers headers;
    if (items.size() > limit) {
      items.resize(limit);
      const auto [started, id] = key(items.back());
      if (v2) headers.add("X-Next-Token", encode_page_token({started, id}, ascending));
    }
    if (v2 && total_running) headers.add("X-Total-Running", std::to_string(*total_running));
    auto out = json::array();
    for (const auto& entry : items) out.push_back(listed(*entry.sandbox, entry.now));
    reply_json(exchange_, 200, out, std::move(headers));
  }

  void item(const std::string& id) {
    if (head_.method == "GET") {
      const auto sandbox = need(id);
      const auto now = sandbox->snapshot();
      if (now.state == Sandbox::State::kEnded) throw ApiError{404, "sandbox \"" + id + "\" not found"};
      return reply_json(exchange_, 200, detail(*sandbox, now));
    }
    if (head_.method != "DELETE") throw ApiError{405, "method not allowed"};
    if (!table_.kill(id)) throw ApiError{404, "sandbox \"" + id + "\" not found"};
    log_.info("sandbox killed reason=asked id=" + id);
    no_content();
  }

  void action(const std::string& id, const std::string& name, bool v2) {
    const bool get = head_.method == "GET";
    if (name == "logs" && get) {
      (void)need(id);
      return reply_json(
          exchange_, 200,
          v2 ? json{{"logs", json::array()}} : json{{"logs", json::array()}, {"logEntries", json::array()}});
    }
    if (name == "metrics" && get) return metrics(*need(id));
    if (name == "snapshots" || name == "fork" || name == "network") {
      (void)need(id);
      throw ApiError{501, "this server does not implement " + name};
    }
    if (head_.method != "POST") throw ApiError{405, "method not allowed"};
    if (name == "timeout") return set_timeout(*need(id));
    if (name == "refreshes") return refresh(*need(id));
    if (name == "pause") return pause(*need(id));
    if (name == "connect") return connect(*need(id), v2);
    if (name == "resume") return resume(*need(id));
    throw ApiError{404, "no such route"};
  }

  void snapshots(std::size_t parts) {
    if (parts != 1) throw ApiError{404, "no such route"};
    if (head_.method != "GET") throw ApiError{405, "method not allowed"};
    reply_json(exchange_, 200, json::array());
  }

  // Unix seconds of the query.
  std::optional<std::int64_t> query_time(const std::map<std::string, std::string>& query, const char* key) {
    const auto found = query.find(key);
    if (found == query.end()) return std::nullopt;
    const auto number = parse_number(found->second);
    if (!number) throw ApiError{400, std::string("validation error: ") + key};
    return static_cast<std::int64_t>(std::min<std::uint64_t>(*number, INT64_MAX));
  }

  void metrics(Sandbox& sandbox) {
    const auto query = parse_query(head_.query);
    const auto from = query_time(query, "start");
    const auto to = query_time(query, "end");
    auto out = json::array();
    for (const auto& usage : sandbox.usage()) {
      const auto seconds = nanoseconds_of(usage.time) / 1'000'000'000;
      if ((!from || seconds >= *from) && (!to || seconds <= *to)) out.push_back(metric_json(usage));
    }
    reply_json(exchange_, 200, out);
  }

  void all_metrics() {
    const auto query = parse_query(head_.query);
    const auto found = query.find("sandbox_ids");
    std::string_view rest(found == query.end() ? std::string_view() : found->second);
    auto out = json::object();
    for (std::size_t count = 0; !rest.empty(); ++count) {
      if (count >= kMaxMetricIds) throw ApiError{400, "validation error: too many sandbox_ids"};
      const auto comma = rest.find(',');
      const auto sandbox = table_.find(rest.substr(0, comma));
      const auto samples = sandbox ? sandbox->usage() : std::vector<Usage>();
      if (!samples.empty()) out[sandbox->id()] = metric_json(samples.back());
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
    reply_json(exchange_, 200, {{"sandboxes", std::move(out)}});
  }

  void set_timeout(Sandbox& sandbox) {
    const auto request = body(true);
    if (!request.contains("timeout")) throw ApiError{400, "validation error: timeout is missing"};
    const auto timeout = std::min(timeout_of(request, "timeout", kDefaultV1, 0), kMaxLifetime);
    if (!sandbox.set_timeout(timeout, false)) throw ApiError{404, "sandbox is not running"};
    table_.wake();
    no_content();
  }

  void refresh(Sandbox& sandbox) {
    const auto asked = timeout_of(body(false), "duration", kDefaultV1, 0);
    if (asked > std::chrono::hours(1)) throw ApiError{400, "validation error: duration"};
    if (!sandbox.set_timeout(std::max(asked, kDefaultV1), true))
      throw ApiError{404, "sandbox is not running"};
    no_content();
  }

  void pause(Sandbox& sandbox) {
    const auto mode = body(false).value("memory", true) ? PauseMode::kMemory : PauseMode::kFilesOnly;
    if (sandbox.snapshot().state == Sandbox::State::kPaused) throw ApiError{409, "sandbox is already paused"};
    if (auto done = sandbox.pause(mode); !done) {
      if (done.error().as_errno() != ESRCH) throw ApiError{status_of(done.error()), done.error().message()};
      const bool paused = sandbox.snapshot().state == Sandbox::State::kPaused;
      throw ApiError{paused ? 409 : 404, paused ? "sandbox is already paused" : "sandbox is not running"};
    }
    log_.info("sandbox paused reason=asked id=" + sandbox.id());
    no_content();
  }

  static ResumeMode resume_mode(const json& request) {
    return request.value("memory", true) ? ResumeMode::kRestore : ResumeMode::kReboot;
  }

  void connect(Sandbox& sandbox, bool v2) {
    const auto request = body(!v2);
    if (!v2 && !request.contains("timeout")) throw ApiError{400, "validation error: timeout is missing"};
    const auto timeout = timeout_of(request, "timeout", kDefaultV2, 0);
    if (timeout > kMaxLifetime) throw ApiError{400, "Timeout cannot be greater than 24 hours"};
    const auto resumed = table_.resume(sandbox, timeout, resume_mode(request));
    if (!resumed) throw ApiError{status_of(resumed.error()), resumed.error().message()};
    table_.wake();
    reply_json(exchange_, *resumed ? 201 : 200, created(sandbox));
  }

  void resume(Sandbox& sandbox) {
    const auto request = body(false);
    const auto timeout = timeout_of(request, "timeout", kDefaultV1, 1);
    if (sandbox.snapshot().state == Sandbox::State::kRunning)
      throw ApiError{409, "sandbox is already running"};
    const auto resumed = table_.resume(sandbox, std::min(timeout, kMaxLifetime), resume_mode(request));
    if (!resumed) throw ApiError{status_of(resumed.error()), resumed.error().message()};
    table_.wake();
    reply_json(exchange_, 201, created(sandbox));
  }

  SandboxTable& table_;
  Exchange& exchange_;
  const RequestHead& head_;
  base::Logger& log_;
};

std::string base64url(std::string text, bool to_url) {
  for (char& c : text) {
    if (to_url && c == '+') c = '-';
    if (to_url && c == '/') c = '_';
    if (!to_url && c == '-') c = '+';
    if (!to_url && c == '_') c = '/';
  }
  return text;
}

}  // namespace

std::string encode_page_token(const PageKey& last, bool ascending) {
  constexpr std::int64_t kBillion = 1'000'000'000;
  const auto text = rfc3339(last.started_ns / kBillion, last.started_ns % kBillion) + "__" + last.id +
                    (ascending ? "__asc" : "");
  return base64url(base64_encode(text), true);
}

base::Result<PageKey> decode_page_token(std::string_view token, bool ascending) {
  const auto bad = base::errno_error(EINVAL, "next token");
  const auto text = base64_decode(base64url(std::string(token), false));
  const auto cut = text ? text->find("__") : std::string::npos;
  if (cut == std::string::npos) return bad;
  const auto time = text->substr(0, cut);
  auto id = text->substr(cut + 2);
  const auto suffix = id.find("__asc");
  if ((suffix != std::string::npos) != ascending) return bad;
  if (suffix != std::string::npos) id.resize(suffix);
  const auto milliseconds = parse_rfc3339(time);
  if (!milliseconds || !valid_sandbox_id(id)) return bad;
  // parse_rfc3339 keeps milliseconds; the digits after those are taken from the text.
  std::int64_t fraction = 0;
  if (const auto dot = time.find('.'); dot != std::string::npos) {
    auto digits = time.substr(dot + 1, time.size() - dot - 2);
    digits.resize(9, '0');
    const auto parsed = parse_number(digits);
    if (!parsed) return bad;
    fraction = static_cast<std::int64_t>(*parsed);
  }
  return PageKey{*milliseconds / 1000 * 1'000'000'000 + fraction, id};
}

std::map<std::string, std::string> decode_metadata_filter(std::string_view value) {
  // Once as a whole; parse_query decodes form encoding once more; and each part is percent-encoded itself.
  std::map<std::string, std::string> out;
  const auto once = percent_decode(value, true);
  std::string_view rest(once);
  while (!rest.empty()) {
    const auto end = rest.find('&');
    const auto pair = rest.substr(0, end);
    const auto equals = pair.find('=');
    if (!pair.empty()) {
      out[percent_decode(pair.substr(0, equals), true)] =
          equals == std::string_view::npos ? std::string() : percent_decode(pair.substr(equals + 1), true);
    }
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  return out;
}

void ControlPlane::serve(Exchange& exchange) {
  const auto& head = exchange.head();
  if (head.path == "/health" && head.method == "GET") return (void)exchange.reply(204, {}, "");
  // Volumes have keys of their own, which nobody here could have given out.
  if (head.path.rfind("/volumecontent/", 0) == 0)
    return reply_error(exchange, 501, "this server does not implement volumes");
  const auto key = head.headers.get("X-API-Key");
  if (!key || !equal_constant_time(base::Secret(std::string(*key)), key_)) {
    return reply_error(exchange, 401, key ? "Invalid API key" : "API key is missing: send it as X-API-Key");
  }
  try {
    ControlCall(table_, exchange, log_).run();
  } catch (const ApiError& error) {
    reply_error(exchange, error.status, error.message);
  } catch (const json::exception& error) {
    reply_error(exchange, 400, std::string("validation error: ") + error.what());
  }
}

}  // namespace nearbox::sandbox_server
