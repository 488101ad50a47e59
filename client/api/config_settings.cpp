// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <charconv>

#include "client/api/config_internal.h"

namespace nearbox::api {

std::optional<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return std::nullopt;
  std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  struct Unit {
    std::string_view name;
    std::uint64_t bytes;
  };
  constexpr std::array kUnits{Unit{"", 1},
                              Unit{"B", 1},
                              Unit{"k", 1000},
                              Unit{"K", 1000},
                              Unit{"kB", 1000},
                              Unit{"KB", 1000},
                              Unit{"M", 1'000'000},
                              Unit{"MB", 1'000'000},
                              Unit{"G", 1000000000},
                              Unit{"GB", 1000000000},
                              Unit{"T", 1000000000000},
                              Unit{"TB", 1000000000000},
                              Unit{"KiB", 1ull << 10},
                              Unit{"MiB", 1ull << 20},
                              Unit{"GiB", 1ull << 30},
                              Unit{"TiB", 1ull << 40}};
  const auto* row = std::find_if(kUnits.begin(), kUnits.end(), [&](const Unit& u) { return u.name == unit; });
  if (row == kUnits.end()) return std::nullopt;
  if (number > UINT64_MAX / row->bytes) return std::nullopt;
  return number * row->bytes;
}

namespace detail {
namespace {

using std::chrono::milliseconds;

constexpr std::int64_t kMaxDurationMs = 366ll * 24 * 3600 * 1000;
constexpr std::size_t kMaxHost = 255;

// ---- values, each with why it cannot be taken ----

std::string as_bool(const Value& value, bool& out) {
  if (const auto* flag = std::get_if<bool>(&value.data)) {
    out = *flag;
    return {};
  }
  if (value.is_text) {
    std::string text = std::get<std::string>(value.data);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    const bool yes = text == "true" || text == "1" || text == "yes" || text == "on";
    if (yes || text == "false" || text == "0" || text == "no" || text == "off") {
      out = yes;
      return {};
    }
  }
  return "it must be true or false";
}

std::string as_number(const Value& value, std::int64_t least, std::int64_t most, std::int64_t& out) {
  const std::string why =
      "it must be a whole number from " + std::to_string(least) + " to " + std::to_string(most);
  std::int64_t number = 0;
  if (const auto* given = std::get_if<std::int64_t>(&value.data)) {
    number = *given;
  } else if (value.is_text) {
    const auto& text = std::get<std::string>(value.data);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size()) return why;
  } else {
    return why;
  }
  if (number < least || number > most) return why;
  out = number;
  return {};
}

std::string as_text(const Value& value, std::string& out) {
  const auto* text = std::get_if<std::string>(&value.data);
  if (text == nullptr) return "it must be text";
  const bool clean = std::none_of(text->begin(), text->end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) == 0x7f;
  });
  if (!clean) return "it holds control characters";
  out = *text;
  return {};
}

bool is_host(std::string_view text) {
  if (text.empty() || text.size() > kMaxHost) return false;
  const auto colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const bool name_ok = !name.empty() && name.front() != '.' && name.front() != '-' &&
                       name.find_first_not_of(
                           "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                           "0123456789.-") == std::string_view::npos;
  if (!name_ok || colon == std::string_view::npos) return name_ok;
  unsigned port = 0;
  const std::string_view digits = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  return error == std::errc{} && end == digits.data() + digits.size() && port >= 1 && port <= 65535;
}

// http(s)://HOST[:PORT][/PATH]; an address in brackets is a host too.
bool is_url(std::string_view text) {
  const std::size_t scheme = text.starts_with("https://") ? 8 : text.starts_with("http://") ? 7 : 0;
  if (scheme == 0) return false;
  const std::string_view rest = text.substr(scheme);
  const auto slash = rest.find('/');
  std::string_view host = rest.substr(0, slash);
  const std::string_view path = slash == std::string_view::npos ? "" : rest.substr(slash);
  if (path.find_first_of("?#@\\ ") != std::string_view::npos) return false;
  if (host.starts_with('[')) {
    const auto close = host.find(']');
    if (close == std::string_view::npos || close == 1) return false;
    const std::string_view address = host.substr(1, close - 1);
    if (address.find_first_not_of("0123456789abcdefABCDEF:.") != std::string_view::npos) return false;
    const std::string_view port = host.substr(close + 1);
    return port.empty() || (port.front() == ':' && is_host("h" + std::string(port)));
  }
  return is_host(host);
}

// ---- one function per kind of member ----

template <auto kMember>
std::string set_bool(Config& config, const Value& value) {
  return as_bool(value, config.*kMember);
}

template <auto kMember>
std::string set_text(Config& config, const Value& value) {
  return as_text(value, config.*kMember);
}

template <auto kMember>
std::string set_duration(Config& config, const Value& value) {
  std::int64_t number = 0;
  auto why = as_number(value, 1, kMaxDurationMs, number);
  if (why.empty()) config.*kMember = milliseconds(number);
  return why;
}

template <auto kMember, std::int64_t kLeast>
std::string set_count(Config& config, const Value& value) {
  std::int64_t number = 0;
  auto why = as_number(value, kLeast, INT64_MAX, number);
  if (why.empty()) config.*kMember = static_cast<std::uint64_t>(number);
  return why;
}

template <auto kMember>
std::string set_map(Config& config, const Value& value) {
  std::optional<StringMap> map;
  if (const auto* given = std::get_if<StringMap>(&value.data)) map = *given;
  if (value.is_text) map = parse_string_map(std::get<std::string>(value.data));
  if (!map) return "it must be an object whose values are text";
  for (auto& [name, text] : *map) (config.*kMember)[name] = text;
  return {};
}

template <auto kMember>
std::string set_url(Config& config, const Value& value) {
  std::string text;
  if (auto why = as_text(value, text); !why.empty()) return why;
  while (text.ends_with('/')) text.pop_back();
  if (!is_url(text)) return "it must be http:// or https:// with a host, and nothing after the path";
  config.*kMember = std::move(text);
  return {};
}

std::string set_key(Config& config, const Value& value) {
  std::string text;
  if (auto why = as_text(value, text); !why.empty()) return why;
  config.api_key = base::Secret(std::move(text));
  return {};
}

std::string set_domain(Config& config, const Value& value) {
  std::string text;
  if (auto why = as_text(value, text); !why.empty()) return why;
  if (!is_host(text)) return "it must be a host name, with a port if need be";
  config.domain = std::move(text);
  return {};
}

std::vector<std::string> as_list(const Value& value) {
  std::vector<std::string> list;
  if (const auto* given = std::get_if<std::vector<std::string>>(&value.data)) list = *given;
  if (value.is_text) {
    std::string item;
    for (const char c : std::get<std::string>(value.data) + ",") {
      if (c == ',') {
        if (!item.empty()) list.push_back(item);
        item.clear();
      } else if (c != ' ') {
        item += c;
      }
    }
  }
  return list;
}

std::string set_languages(Config& config, const Value& value) {
  auto list = as_list(value);
  if (list.empty()) return "it must be a list of languages";
  config.languages = std::move(list);
  return {};
}

std::string set_programs(Config& config, const Value& value) {
  const bool is_list = value.is_text || std::holds_alternative<std::vector<std::string>>(value.data);
  auto list = as_list(value);
  const bool paths = std::any_of(list.begin(), list.end(), [](const std::string& name) {
    return name.empty() || name.find('/') != std::string::npos;
  });
  if (!is_list || paths) return "it must be a list of names of programs, without directories";
  config.fetch_deny = std::move(list);
  return {};
}

template <auto Member>
std::string set_size(Config& config, const Value& value) {
  std::optional<std::uint64_t> size;
  if (const auto* number = std::get_if<std::int64_t>(&value.data); number != nullptr && *number >= 0) {
    size = static_cast<std::uint64_t>(*number);
  }
  if (const auto* text = std::get_if<std::string>(&value.data)) size = parse_size(*text);
  if (!size) return "it must be a size such as 100MB";
  config.*Member = size;
  return {};
}

std::string set_provider(Config& config, const Value& value) {
  std::string text;
  if (auto why = as_text(value, text); !why.empty()) return why;
  if (text != "e2b" && text != "local") return "it must be e2b or local";
  config.provider = text == "local" ? Provider::kLocal : Provider::kE2b;
  return {};
}

std::string set_mode(Config&, const Value& value) {
  std::string text;
  if (auto why = as_text(value, text); !why.empty()) return why;
  if (text == "production") return {};
  return "only production is possible: code never runs on this machine in place of a sandbox";
}

// ---- showing ----

template <auto kMember>
std::string show_bool(const Config& config) {
  return config.*kMember ? "true" : "false";
}
template <auto kMember>
std::string show_text(const Config& config) {
  return config.*kMember;
}
template <auto kMember>
std::string show_duration(const Config& config) {
  return std::to_string((config.*kMember).count());
}
template <auto kMember>
std::string show_count(const Config& config) {
  return std::to_string(config.*kMember);
}
template <auto kMember>
std::string show_limit(const Config& config) {
  if (!(config.*kMember)) return "none";
  if constexpr (requires { (config.*kMember)->count(); }) {
    return std::to_string((config.*kMember)->count());
  } else {
    return std::to_string(*(config.*kMember));
  }
}
// Names only: values of environments are often keys.
template <auto kMember>
std::string show_map(const Config& config) {
  std::string out;
  for (const auto& [name, text] : config.*kMember) out += (out.empty() ? "" : ",") + name;
  return "{" + out + "}";
}
std::string show_key(const Config& config) { return config.api_key.printable(); }
std::string show_languages(const Config& config) {
  std::string out;
  for (const auto& name : config.languages) out += (out.empty() ? "" : ",") + name;
  return out.empty() ? "all" : out;
}
std::string show_programs(const Config& config) {
  std::string out;
  for (const auto& name : config.fetch_deny) out += (out.empty() ? "" : ",") + name;
  return out.empty() ? "none" : out;
}
std::string show_provider(const Config& config) {
  return config.provider == Provider::kLocal ? "local" : "e2b";
}
std::string show_mode(const Config&) { return "production"; }

const std::vector<Setting>& table() {
  using C = Config;
  static const std::vector<Setting> kTable{
      {"apiKey", {"E2B_API_KEY"}, set_key, show_key},
      {"apiKeyFile", {"NEARBOX_API_KEY_FILE"}, set_text<&C::api_key_file>, show_text<&C::api_key_file>},
      {"validateApiKey",
       {"E2B_VALIDATE_API_KEY"},
       set_bool<&C::validate_api_key>,
       show_bool<&C::validate_api_key>},
      {"enabled", {"E2B_ENABLED"}, set_bool<&C::enabled>, show_bool<&C::enabled>},
      {"debug", {"E2B_DEBUG"}, set_bool<&C::debug>, show_bool<&C::debug>},
      {"provider", {"NEARBOX_PROVIDER"}, set_provider, show_provider},
      {"mode", {"E2B_MODE"}, set_mode, show_mode},
      {"domain", {"E2B_DOMAIN"}, set_domain, show_text<&C::domain>},
      {"apiUrl", {"E2B_API_URL", "E2B_BASE_URL"}, set_url<&C::api_url>, show_text<&C::api_url>},
      {"sandboxUrl", {"E2B_SANDBOX_URL"}, set_url<&C::sandbox_url>, show_text<&C::sandbox_url>},
      {"template", {"E2B_TEMPLATE"}, set_text<&C::template_name>, show_text<&C::template_name>},
      {"sandboxId", {}, set_text<&C::sandbox_id>, show_text<&C::sandbox_id>},
      {"workDir", {}, set_text<&C::work_dir>, show_text<&C::work_dir>},
      {"timeoutMs",
       {"E2B_SANDBOX_TIMEOUT"},
       set_duration<&C::sandbox_timeout>,
       show_duration<&C::sandbox_timeout>},
      {"execTimeoutMs", {"E2B_TIMEOUT_MS"}, set_duration<&C::exec_timeout>, show_duration<&C::exec_timeout>},
      {"codeTimeoutMs", {"E2B_TIMEOUT_MS"}, set_duration<&C::code_timeout>, show_duration<&C::code_timeout>},
      {"maxExecutionTimeMs",
       {"E2B_MAX_EXECUTION_TIME"},
       set_duration<&C::max_execution_time>,
       show_limit<&C::max_execution_time>},
      {"languages", {"E2B_LANGUAGES", "E2B_ALLOWED_LANGUAGES"}, set_languages, show_languages},
      {"maxCodeSize",
       {"E2B_MAX_CODE_SIZE"},
       set_count<&C::max_code_bytes, 1>,
       show_limit<&C::max_code_bytes>},
      {"maxActiveSandboxes",
       {"E2B_MAX_ACTIVE_SANDBOXES"},
       set_count<&C::max_active_sandboxes, 1>,
       show_limit<&C::max_active_sandboxes>},
      {"maxConcurrentExecutions",
       {"E2B_MAX_CONCURRENT_EXECUTIONS"},
       set_count<&C::max_concurrent_executions, 1>,
       show_count<&C::max_concurrent_executions>},
      {"maxOutputLength",
       {"E2B_MAX_OUTPUT_LENGTH"},
       set_count<&C::max_output_bytes, 0>,
       show_count<&C::max_output_bytes>},
      {"autoTriggerThreshold", {}, set_size<&C::auto_trigger_bytes>, show_limit<&C::auto_trigger_bytes>},
      {"metadata", {"E2B_SANDBOX_METADATA"}, set_map<&C::metadata>, show_map<&C::metadata>},
      {"envs", {}, set_map<&C::envs>, show_map<&C::envs>},
      {"allowInternetAccess", {}, set_bool<&C::allow_internet_access>, show_bool<&C::allow_internet_access>},
      {"fetch.deny", {}, set_programs, show_programs},
      {"fetch.max_per_hour",
       {},
       set_size<&C::fetch_max_bytes_per_hour>,
       show_limit<&C::fetch_max_bytes_per_hour>},
      {"mirror.max_entries", {}, set_count<&C::mirror_max_entries, 1>, show_count<&C::mirror_max_entries>},
  };
  return kTable;
}

}  // namespace

std::span<const Setting> settings() { return table(); }

const Setting* find_setting(std::string_view key) {
  const auto all = settings();
  const auto it = std::find_if(all.begin(), all.end(), [&](const Setting& s) { return s.key == key; });
  return it == all.end() ? nullptr : &*it;
}

}  // namespace detail
}  // namespace nearbox::api
