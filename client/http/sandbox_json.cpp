// SPDX-License-Identifier: Apache-2.0
#include "client/http/sandbox_json.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "client/api/error_code.h"
#include "client/http/bounded_json.h"

namespace nearbox::http {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxText = 4096;
constexpr std::size_t kMaxHostName = 255;

json parse(std::string_view text) { return parse_bounded(text); }

// A text member; "" when it is missing or null, nullopt when it is something else or unusable.
std::optional<std::string> text_of(const json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end() || it->is_null()) return std::string();
  if (!it->is_string()) return std::nullopt;
  const auto& text = it->get_ref<const std::string&>();
  const bool clean = text.size() <= kMaxText && std::none_of(text.begin(), text.end(), [](char c) {
                       return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
                     });
  return clean ? std::optional(text) : std::nullopt;
}

std::optional<std::uint32_t> count_of(const json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end() || it->is_null()) return 0;
  if (!it->is_number_unsigned()) return std::nullopt;
  const auto value = it->get<std::uint64_t>();
  return value <= UINT32_MAX ? std::optional(static_cast<std::uint32_t>(value)) : std::nullopt;
}

// It becomes part of a URL, and the envd token goes there.
bool is_domain(std::string_view text) {
  return text.size() <= kMaxHostName &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:") ==
             std::string_view::npos;
}

// It becomes a header.
bool is_token(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

std::optional<api::SandboxInfo> info_of(const json& object) {
  if (!object.is_object()) return std::nullopt;
  const auto id_text = text_of(object, "sandboxID");
  if (!id_text) return std::nullopt;
  auto id = api::SandboxId::parse(*id_text);
  const auto template_id = text_of(object, "templateID"), alias = text_of(object, "alias");
  const auto state = text_of(object, "state"), domain = text_of(object, "domain");
  const auto started = text_of(object, "startedAt"), end = text_of(object, "endAt");
  const auto version = text_of(object, "envdVersion");
  const auto cpu = count_of(object, "cpuCount"), memory = count_of(object, "memoryMB");
  const auto disk = count_of(object, "diskSizeMB");
  if (!id || !template_id || !alias || !state || !domain || !started || !end || !version || !cpu || !memory ||
      !disk || !is_domain(*domain)) {
    return std::nullopt;
  }
  api::SandboxInfo info{std::move(*id), *template_id, *alias,  api::SandboxState::kOther,
                        *started,       *end,         *cpu,    *memory,
                        *disk,          {},           *domain, *version};
  if (*state == "running") info.state = api::SandboxState::kRunning;
  if (*state == "paused") info.state = api::SandboxState::kPaused;
  const auto metadata = object.find("metadata");
  if (metadata != object.end() && metadata->is_object()) {
    for (const auto& [key, value] : metadata->items()) {
      if (value.is_string()) info.metadata[key] = value.get<std::string>();
    }
  }
  return info;
}

std::int64_t whole_seconds(std::chrono::milliseconds timeout) {
  return std::chrono::ceil<std::chrono::seconds>(timeout).count();
}

}  // namespace

std::string create_body(const api::CreateOptions& options, CreateForm form) {
  json body = {{"templateID", options.template_id},
               {"timeout", whole_seconds(options.timeout)},
               {"autoPause", options.auto_pause}};
  if (form == CreateForm::kFirst) body["secure"] = true;
  if (!options.metadata.empty()) body["metadata"] = options.metadata;
  if (!options.envs.empty()) body["envVars"] = options.envs;
  if (!options.allow_internet_access) body["allow_internet_access"] = false;
  return body.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string timeout_body(std::chrono::milliseconds timeout) {
  return json{{"timeout", whole_seconds(timeout)}}.dump();
}

std::string percent_encode(std::string_view text) {
  constexpr std::string_view kPlain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
  std::string out;
  for (const char c : text) {
    if (kPlain.find(c) != std::string_view::npos) {
      out += c;
    } else {
      const auto u = static_cast<unsigned char>(c);
      out += '%';
      out += "0123456789ABCDEF"[u >> 4];
      out += "0123456789ABCDEF"[u & 15];
    }
  }
  return out;
}

// The server decodes the query, then the whole value, then each part.
// Source: infra 54693ff, packages/api/internal/utils/sandboxes_list.go.
std::string metadata_query(const std::map<std::string, std::string>& metadata) {
  std::string pairs;
  for (const auto& [key, value] : metadata) {
    if (!pairs.empty()) pairs += '&';
    pairs += percent_encode(percent_encode(key)) + '=' + percent_encode(percent_encode(value));
  }
  return percent_encode(pairs);
}

std::optional<api::SandboxAccess> parse_access(std::string_view text) {
  const json object = parse(text);
  if (!object.is_object()) return std::nullopt;
  const auto id_text = text_of(object, "sandboxID");
  if (!id_text) return std::nullopt;
  auto id = api::SandboxId::parse(*id_text);
  const auto domain = text_of(object, "domain"), envd_token = text_of(object, "envdAccessToken");
  const auto traffic_token = text_of(object, "trafficAccessToken");
  const auto template_id = text_of(object, "templateID"), version = text_of(object, "envdVersion");
  if (!id || !domain || !envd_token || !traffic_token || !template_id || !version || !is_domain(*domain) ||
      !is_token(*envd_token) || !is_token(*traffic_token)) {
    return std::nullopt;
  }
  return api::SandboxAccess{
      std::move(*id), *domain, base::Secret(*envd_token), base::Secret(*traffic_token), *template_id,
      *version,       false};
}

std::optional<api::SandboxInfo> parse_info(std::string_view text) { return info_of(parse(text)); }

std::optional<std::vector<api::SandboxInfo>> parse_info_list(std::string_view text) {
  const json array = parse(text);
  if (!array.is_array()) return std::nullopt;
  std::vector<api::SandboxInfo> list;
  for (const auto& item : array) {
    auto info = info_of(item);
    if (!info) return std::nullopt;
    list.push_back(std::move(*info));
  }
  return list;
}

std::string error_message(std::string_view text) {
  const json object = parse(text);
  if (!object.is_object()) return {};
  const auto it = object.find("message");
  return it != object.end() && it->is_string() ? api::printable(it->get_ref<const std::string&>()) : "";
}

}  // namespace nearbox::http
