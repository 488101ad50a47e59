// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/control_spec.h"

#include <algorithm>

#include "tools/sandbox_server/rootfs.h"

namespace nearbox::sandbox_server {

using nlohmann::json;

namespace {

constexpr std::size_t kMaxMapEntries = 1024;
// The names and values of one map together.
constexpr std::size_t kMaxMapBytes = 1024 * 1024;

std::map<std::string, std::string> text_map(const json& body, const char* key) {
  const auto found = body.find(key);
  if (found == body.end() || found->is_null()) return {};
  auto out = found->get<std::map<std::string, std::string>>();
  std::size_t bytes = 0;
  for (const auto& [name, value] : out) bytes += name.size() + value.size();
  if (out.size() > kMaxMapEntries || bytes > kMaxMapBytes)
    throw ApiError{400, std::string("validation error: too much in ") + key};
  return out;
}

// Fresh directories that a workspace asks for, as metadata "nearbox.bind": a JSON list of paths.
std::vector<std::string> binds_of(const std::map<std::string, std::string>& metadata) {
  const auto found = metadata.find("nearbox.bind");
  if (found == metadata.end()) return {};
  const auto list = json::parse(found->second);
  auto out = list.get<std::vector<std::string>>();
  if (out.size() > kMaxBinds) throw ApiError{400, "validation error: too many paths in nearbox.bind"};
  for (const auto& path : out) {
    if (!valid_bind_path(path)) throw ApiError{400, "validation error: nearbox.bind cannot be " + path};
  }
  return out;
}

// Whether a field asks for something: neither missing, null nor empty.
bool wanted(const json& body, const char* key) {
  const auto found = body.find(key);
  return found != body.end() && !found->is_null() && !found->empty();
}

[[noreturn]] void refuse_offline() {
  throw ApiError{501, "this server cannot keep a sandbox off the network, which is the machine's own"};
}

void read_lifecycle(const json& body, SandboxSpec& spec) {
  spec.auto_pause = body.value("autoPause", false);
  spec.auto_pause_memory = body.value("autoPauseMemory", true);
  if (const auto resume = body.find("autoResume"); resume != body.end() && resume->is_object()) {
    spec.auto_resume = resume->value("enabled", false);
  }
  if (spec.auto_pause_memory) return;
  if (!spec.auto_pause) throw ApiError{400, "autoPauseMemory=false requires autoPause"};
  if (spec.auto_resume) throw ApiError{400, "autoPauseMemory=false excludes autoResume"};
}

void read_network(const json& body, SandboxSpec& spec) {
  if (const auto network = body.find("network"); network != body.end() && network->is_object()) {
    refuse_network(*network);
    spec.public_traffic = network->value("allowPublicTraffic", true);
    spec.mask_host = network->value("maskRequestHost", std::string());
    constexpr std::size_t kMaxHost = 512;
    const auto unprintable = [](unsigned char c) { return c <= 0x20 || c >= 0x7f; };
    if (spec.mask_host.size() > kMaxHost ||
        std::any_of(spec.mask_host.begin(), spec.mask_host.end(), unprintable)) {
      throw ApiError{400, "validation error: maskRequestHost"};
    }
  }
  if (!spec.public_traffic && !spec.secure) throw ApiError{400, "allowPublicTraffic=false requires secure"};
  if (const auto internet = body.find("allow_internet_access");
      internet != body.end() && internet->is_boolean()) {
    spec.internet = internet->get<bool>();
    if (!*spec.internet) refuse_offline();
  }
}

}  // namespace

std::chrono::seconds timeout_of(const json& body, const char* key, std::chrono::seconds other,
                                std::int64_t least) {
  const auto found = body.find(key);
  if (found == body.end() || found->is_null()) return other;
  if (!found->is_number_integer())
    throw ApiError{400, std::string("validation error: ") + key + " must be an integer"};
  const auto value = found->get<std::int64_t>();
  if (value < least) throw ApiError{400, std::string("validation error: ") + key + " is too small"};
  return std::chrono::seconds(value);
}

SandboxSpec spec_of(const json& body, bool second_generation) {
  SandboxSpec spec;
  spec.template_id = body.at("templateID").get<std::string>();
  constexpr std::size_t kMaxTemplate = 256;
  if (spec.template_id.empty() || spec.template_id.size() > kMaxTemplate) {
    throw ApiError{400, "validation error: templateID"};
  }
  spec.timeout = timeout_of(body, "timeout", second_generation ? kDefaultV2 : kDefaultV1, 1);
  if (spec.timeout > kMaxLifetime) {
    throw ApiError{
        400, "Timeout cannot be greater than " + std::to_string(kMaxLifetime.count() / 3600) + " hours"};
  }
  spec.metadata = text_map(body, "metadata");
  spec.envs = text_map(body, "envVars");
  for (const auto& [name, value] : spec.envs) {
    const bool bad = name.empty() || name.find('=') != std::string::npos ||
                     name.find('\0') != std::string::npos || value.find('\0') != std::string::npos;
    if (bad) throw ApiError{400, "validation error: envVars"};
  }
  spec.binds = binds_of(spec.metadata);
  read_lifecycle(body, spec);
  spec.secure = second_generation || body.value("secure", false);
  read_network(body, spec);
  if (wanted(body, "volumeMounts")) throw ApiError{501, "this server has no volumes"};
  if (wanted(body, "mcp")) throw ApiError{501, "this server has no MCP gateway"};
  if (wanted(body, "iam")) throw ApiError{501, "this server has no workload identity"};
  return spec;
}

void refuse_network(const json& network) {
  for (const char* key : {"denyOut", "rules", "egressProxy", "httpsPorts", "dnsServers"}) {
    if (!wanted(network, key)) continue;
    throw ApiError{501, std::string("this server cannot restrict or change a sandbox's network, which is the "
                                    "machine's own: ") +
                            key};
  }
  for (const char* key : {"allowInternetAccess", "allow_internet_access"}) {
    if (const auto found = network.find(key); found != network.end() && *found == false) refuse_offline();
  }
}

std::string idempotency_key_of(std::string_view header) {
  constexpr std::size_t kMaxKey = 255;
  if (header.empty() || header.size() > kMaxKey ||
      header.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") != std::string_view::npos) {
    throw ApiError{400, "validation error: Idempotency-Key"};
  }
  return std::string(header);
}

}  // namespace nearbox::sandbox_server
