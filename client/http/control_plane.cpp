// SPDX-License-Identifier: Apache-2.0
#include "client/http/control_plane.h"

#include <algorithm>

#include "client/api/error_code.h"
#include "client/http/random.h"
#include "client/http/retry.h"
#include "client/http/sandbox_json.h"

namespace nearbox::http {

using api::ErrorCode;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct HttpControlPlane::Call {
  std::string method;
  std::string path;
  std::string body;
  bool repeatable = false;  // doing it twice is as good as once
  std::string idempotency_key;
};

namespace {

bool is_server_failure(int status) {
  return status == 500 || status == 502 || status == 503 || status == 504;
}

// How long to wait before the next attempt; nullopt: this answer stands.
std::optional<milliseconds> wait_after(const Response& response, bool repeatable, int attempt) {
  if (response.status == 429 || response.status == 503) {
    if (const auto after = response.retry_after()) {
      return std::max<milliseconds>(*after, backoff(attempt) / 2);
    }
  }
  if (repeatable && is_server_failure(response.status)) return backoff(attempt);
  return std::nullopt;
}

std::string why_of(const Response& response) {
  const std::string message = error_message(response.body);
  const std::string status = "HTTP " + std::to_string(response.status);
  return message.empty() ? "it answered " + status : "it answered " + status + ": " + message;
}

base::Error bad_answer(const std::string& url) {
  return api::fill_error(ErrorCode::kNetUnreachable,
                         {{"HOST", host_of(url)}, {"WHY", "its answer is not what the E2B API promises"}});
}

}  // namespace

base::Result<HttpControlPlane::Reply> HttpControlPlane::send(const Call& call, Deadline deadline,
                                                             const std::stop_token& stop) {
  Request request;
  request.method = call.method;
  request.url = url_ + call.path;
  request.body = call.body;
  request.repeatable = call.repeatable;
  request.secrets.emplace_back("X-API-Key", key_);
  request.headers.push_back({"Accept", "application/json"});
  if (!call.body.empty()) request.headers.push_back({"Content-Type", "application/json"});
  if (!call.idempotency_key.empty()) request.headers.push_back({"Idempotency-Key", call.idempotency_key});
  for (int attempt = 0;; ++attempt) {
    TransferInfo info;
    auto result = client_.perform(request, deadline, stop, &info);
    const bool last = attempt + 1 >= kMaxAttempts;
    if (result) {
      const auto wait = wait_after(*result, call.repeatable, attempt);
      if (!last && wait && pause_for(*wait, deadline, stop)) continue;
      if (wait && stop.stop_requested()) return api::fill_error(ErrorCode::kCancelled);
      return Reply{std::move(*result), attempt + 1};
    }
    const bool may_repeat =
        api::is(result.error(), ErrorCode::kNetUnreachable) && (call.repeatable || !info.sent);
    if (last || !may_repeat || !pause_for(backoff(attempt), deadline, stop)) return std::move(result).error();
  }
}

base::Result<HttpControlPlane::Reply> HttpControlPlane::send_either(Call second, Call first,
                                                                    std::atomic<Generation>& known,
                                                                    Deadline deadline,
                                                                    const std::stop_token& stop) {
  const Generation form = known.load();
  if (form != Generation::kFirst) {
    auto reply = send(second, deadline, stop);
    if (!reply) return reply;
    const int status = reply->response.status;
    if (reply->response.ok()) known.store(Generation::kSecond);
    // 404 is also an unknown template or sandbox: only a server known to have the route means that.
    if (form == Generation::kSecond || (status != 404 && status != 405)) return reply;
  }
  auto reply = send(first, deadline, stop);
  if (reply && reply->response.ok()) known.store(Generation::kFirst);
  return reply;
}

base::Error HttpControlPlane::refusal(const Response& response, const api::SandboxId* id) const {
  const std::string message = error_message(response.body);
  const std::string_view name = id == nullptr ? std::string_view("") : std::string_view(id->str());
  switch (response.status) {
    case 401:
      return api::fill_error(ErrorCode::kAuthRejected);
    case 403:
      return api::make_error(ErrorCode::kAuthRejected,
                             "E2B refused the API key (HTTP 403)" + (message.empty() ? "" : ": " + message));
    case 404:
      if (id != nullptr) return api::fill_error(ErrorCode::kSandboxNotFound, {{"ID", name}});
      break;
    case 409:
      if (id != nullptr) {
        return api::fill_error(ErrorCode::kSandboxBusy,
                               {{"ID", name}, {"WHY", message.empty() ? "HTTP 409" : message}});
      }
      break;
    case 429: {
      const auto after = response.retry_after();
      if (after) return api::fill_error(ErrorCode::kRateLimited, {{"N", std::to_string(after->count())}});
      return api::make_error(ErrorCode::kRateLimited,
                             "Rate limit exceeded" + (message.empty() ? "" : ": " + message));
    }
    case 400:
      return api::fill_error(ErrorCode::kArgInvalid, {{"NAME", id == nullptr ? "request" : "sandbox"},
                                                      {"WHY", message.empty() ? "HTTP 400" : message}});
    default:
      break;
  }
  return api::fill_error(ErrorCode::kNetUnreachable, {{"HOST", host_of(url_)}, {"WHY", why_of(response)}});
}

base::Error HttpControlPlane::create_refusal(const Response& response,
                                             const api::CreateOptions& options) const {
  const std::string message = error_message(response.body);
  const std::string why = message.empty() ? "HTTP " + std::to_string(response.status) : message;
  switch (response.status) {
    case 404:
      return api::fill_error(ErrorCode::kTemplateUnknown, {{"NAME", options.template_id}});
    case 429:  // without Retry-After it is the team's number of sandboxes, not the rate
      if (!response.retry_after()) return api::fill_error(ErrorCode::kSandboxLimit, {{"LIMIT", why}});
      return refusal(response, nullptr);
    case 401:
    case 403:
      return refusal(response, nullptr);
    default:
      break;
  }
  const bool passing = response.status >= 500 || response.status == 409;
  return api::fill_error(passing ? ErrorCode::kSandboxCreateFailedRetry : ErrorCode::kSandboxCreateFailed,
                         {{"WHY", why}});
}

base::Result<api::SandboxAccess> HttpControlPlane::create(const api::CreateOptions& options,
                                                          Deadline deadline, std::stop_token stop) {
  const std::string key = "nearbox-" + random_hex() + random_hex();
  const Call second{"POST", "/v2/sandboxes", create_body(options, CreateForm::kSecond), false, key};
  const Call first{"POST", "/sandboxes", create_body(options, CreateForm::kFirst), false, key};
  auto reply = send_either(second, first, create_form_, deadline, stop);
  if (!reply) return std::move(reply).error();
  if (!reply->response.ok()) return create_refusal(reply->response, options);
  auto access = parse_access(reply->response.body);
  if (!access) return bad_answer(url_);
  return std::move(*access);
}

base::Result<api::SandboxAccess> HttpControlPlane::connect(const api::SandboxId& id, milliseconds timeout,
                                                           Deadline deadline, std::stop_token stop) {
  const std::string path = "/sandboxes/" + id.str() + "/connect";
  const Call second{"POST", "/v2" + path, timeout_body(timeout), true, ""};
  const Call first{"POST", path, timeout_body(timeout), true, ""};
  auto reply = send_either(second, first, connect_form_, deadline, stop);
  if (!reply) return std::move(reply).error();
  if (!reply->response.ok()) return refusal(reply->response, &id);
  auto access = parse_access(reply->response.body);
  if (!access || access->id != id) return bad_answer(url_);
  access->resumed = reply->response.status == 201;
  return std::move(*access);
}

base::Result<api::SandboxInfo> HttpControlPlane::get(const api::SandboxId& id, Deadline deadline,
                                                     std::stop_token stop) {
  auto reply = send({"GET", "/sandboxes/" + id.str(), "", true, ""}, deadline, stop);
  if (!reply) return std::move(reply).error();
  if (!reply->response.ok()) return refusal(reply->response, &id);
  auto info = parse_info(reply->response.body);
  if (!info || info->id != id) return bad_answer(url_);
  return std::move(*info);
}

base::Result<api::SandboxList> HttpControlPlane::list(const api::ListFilter& filter, Deadline deadline,
                                                      std::stop_token stop) {
  std::string query = "?limit=100";
  if (filter.running != filter.paused) query += filter.running ? "&state=running" : "&state=paused";
  if (!filter.metadata.empty()) query += "&metadata=" + metadata_query(filter.metadata);
  if (!filter.template_id.empty()) query += "&template=" + percent_encode(filter.template_id);
  api::SandboxList list;
  std::string token;
  for (std::size_t page = 0; page < api::kMaxListPages; ++page) {
    const std::string next = token.empty() ? "" : "&nextToken=" + percent_encode(token);
    auto reply = send({"GET", "/v2/sandboxes" + query + next, "", true, ""}, deadline, stop);
    if (!reply) return std::move(reply).error();
    if (!reply->response.ok()) return refusal(reply->response, nullptr);
    auto part = parse_info_list(reply->response.body);
    if (!part) return bad_answer(url_);
    for (auto& info : *part) {
      if (list.sandboxes.size() >= filter.limit) {
        list.complete = false;
        return list;
      }
      list.sandboxes.push_back(std::move(info));
    }
    const std::string following(reply->response.header("x-next-token"));
    if (following.empty()) return list;
    if (following == token) return bad_answer(url_);  // it would go on for ever
    token = following;
  }
  list.complete = false;
  return list;
}

base::Result<void> HttpControlPlane::set_timeout(const api::SandboxId& id, milliseconds timeout,
                                                 Deadline deadline, std::stop_token stop) {
  const Call call{"POST", "/sandboxes/" + id.str() + "/timeout", timeout_body(timeout), true, ""};
  auto reply = send(call, deadline, stop);
  if (!reply) return std::move(reply).error();
  if (!reply->response.ok()) return refusal(reply->response, &id);
  return {};
}

base::Result<bool> HttpControlPlane::pause(const api::SandboxId& id, Deadline deadline,
                                           std::stop_token stop) {
  // Repeating is harmless: a pause that went through answers 409 the second time.
  auto reply = send({"POST", "/sandboxes/" + id.str() + "/pause", "{}", true, ""}, deadline, stop);
  if (!reply) return std::move(reply).error();
  if (reply->response.ok()) return true;
  if (reply->response.status != 409) return refusal(reply->response, &id);
  if (reply->attempts > 1) return true;
  // 409 is "paused already" as well as "on its way to another state".
  auto info = get(id, deadline, stop);
  if (info && info->state == api::SandboxState::kPaused) return false;
  return refusal(reply->response, &id);
}

base::Result<bool> HttpControlPlane::kill(const api::SandboxId& id, Deadline deadline, std::stop_token stop) {
  auto reply = send({"DELETE", "/sandboxes/" + id.str(), "", true, ""}, deadline, stop);
  if (!reply) return std::move(reply).error();
  if (reply->response.ok()) return true;
  // Gone at a second attempt: the first one did it.
  if (reply->response.status == 404) return reply->attempts > 1;
  return refusal(reply->response, &id);
}

}  // namespace nearbox::http
