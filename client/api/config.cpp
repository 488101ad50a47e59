// SPDX-License-Identifier: Apache-2.0
#include "client/api/config.h"

#include <algorithm>
#include <array>
#include <unistd.h>

#include "client/api/config_internal.h"
#include "client/api/error_code.h"

namespace nearbox::api {
namespace {

using detail::Value;

constexpr std::size_t kMaxKeyFile = 4096;
constexpr int kMaxParents = 64;

// Variables of other programs that mean nothing here; a name that ends in _ stands for all below it.
constexpr std::array<std::string_view, 11> kNoEffect{"E2B_SANDBOX_POOL_SIZE",
                                                     "E2B_IDLE_SANDBOX_TIMEOUT",
                                                     "E2B_CLEANUP_INTERVAL",
                                                     "E2B_RATE_LIMIT_PER_MINUTE",
                                                     "E2B_RATE_LIMIT_PER_MIN",
                                                     "E2B_MEMORY_LIMIT_MB",
                                                     "E2B_CPU_LIMIT_PERCENT",
                                                     "E2B_ENABLE_",
                                                     "E2B_ENVIRONMENT",
                                                     "E2B_EXECUTION_TIMEOUT",
                                                     "E2B_LOCAL_"};

bool has_no_effect(std::string_view name) {
  return std::any_of(kNoEffect.begin(), kNoEffect.end(), [&](std::string_view row) {
    return row.ends_with('_') ? name.starts_with(row) : name == row;
  });
}

base::Error not_valid(const std::string& what, std::string_view why) {
  return fill_error(ErrorCode::kArgInvalid, {{"NAME", what}, {"WHY", why}});
}

// "domain in /a/nearbox.toml", "E2B_DOMAIN", "--domain"
std::string name_of(std::string_view key, const Origin& origin) {
  const bool is_file = origin.kind != OriginKind::kEnvironment && origin.kind != OriginKind::kFlag;
  return is_file ? std::string(key) + " in " + origin.where : origin.where;
}

base::Result<void> apply(Config& config, const detail::Setting& setting, const Value& value,
                         const Origin& origin) {
  const std::string why = setting.apply(config, value);
  if (!why.empty()) return not_valid(name_of(setting.key, origin), why);
  config.origins[std::string(setting.key)] = origin;
  return {};
}

base::Result<void> apply_file(Config& config, const std::string& path, OriginKind kind) {
  auto values = detail::read_config_file(path);
  if (!values) {
    if (values.error().as_errno() == ENOENT && kind != OriginKind::kConfigFile) return {};
    if (values.error().as_errno() == ENOENT) return not_valid("--config " + path, "there is no such file");
    return std::move(values).error();
  }
  for (const auto& [key, value] : *values) {
    const auto* setting = detail::find_setting(key);
    if (setting == nullptr) {
      return fill_error(ErrorCode::kArgUnknown, {{"NAME", printable(key) + " in " + path}});
    }
    if (auto done = apply(config, *setting, value, {kind, path}); !done) return done;
  }
  return {};
}

void apply_login(Config& config, const Environment& env) {
  const auto home = home_dir(env);
  if (!home) return;
  const std::string path = *home + "/.e2b/config.json";
  const auto text = detail::read_small_file(path, detail::kMaxConfigFile);
  if (!text) return;
  std::string key = detail::login_key(*text);
  if (key.empty()) return;
  config.api_key = base::Secret(std::move(key));
  config.origins["apiKey"] = {OriginKind::kLogin, path};
}

// nearbox.toml of the project: in `dir`, or above it up to the directory that holds .git.
std::optional<std::string> find_project_file(std::string dir) {
  if (dir.empty()) return std::nullopt;
  std::optional<std::string> found;
  for (int i = 0; i < kMaxParents; ++i) {
    const std::string path = (dir == "/" ? "" : dir) + "/nearbox.toml";
    if (!found && ::access(path.c_str(), F_OK) == 0) found = path;
    if (i == 0 && found) return found;
    if (::access(((dir == "/" ? "" : dir) + "/.git").c_str(), F_OK) == 0) return found;
    const auto slash = dir.rfind('/');
    if (dir == "/" || slash == std::string::npos) return std::nullopt;
    dir = slash == 0 ? "/" : dir.substr(0, slash);
  }
  return std::nullopt;
}

base::Result<void> apply_environment(Config& config, const ConfigSources& sources) {
  for (const auto& setting : detail::settings()) {
    for (const auto variable : setting.variables) {
      const auto it = sources.environment.find(std::string(variable));
      if (it == sources.environment.end() || it->second.empty()) continue;
      const Value value{it->second, true};
      if (auto done = apply(config, setting, value, {OriginKind::kEnvironment, it->first}); !done)
        return done;
      break;
    }
  }
  const auto debug = sources.environment.find("DEBUG");
  config.log_debug = debug != sources.environment.end() && debug->second.find("e2b:") != std::string::npos;
  for (const auto& [name, value] : sources.environment) {
    if (has_no_effect(name)) config.notices.push_back(name + " has no effect");
  }
  return {};
}

base::Result<void> apply_flags(Config& config, const ConfigSources& sources) {
  for (const auto& [key, text] : sources.flags) {
    const auto* setting = detail::find_setting(key);
    if (setting == nullptr) return fill_error(ErrorCode::kArgUnknown, {{"NAME", key}});
    const Value value{text, true};
    if (auto done = apply(config, *setting, value, {OriginKind::kFlag, "--" + key}); !done) return done;
  }
  return {};
}

Origin origin_of(const Config& config, const std::string& key) {
  const auto it = config.origins.find(key);
  return it == config.origins.end() ? Origin{} : it->second;
}

// A key file counts where it stands higher than the key itself.
base::Result<void> read_key_file(Config& config) {
  if (config.api_key_file.empty()) return {};
  const Origin file_origin = origin_of(config, "apiKeyFile");
  if (file_origin.kind == OriginKind::kProjectFile) {
    return not_valid(name_of("apiKeyFile", file_origin), "a project file may not name a key file");
  }
  if (origin_of(config, "apiKey").kind >= file_origin.kind) return {};
  auto text = detail::read_small_file(config.api_key_file, kMaxKeyFile);
  if (!text) return not_valid(name_of("apiKeyFile", file_origin), text.error().code.message());
  while (!text->empty() && (text->back() == '\n' || text->back() == '\r' || text->back() == ' ')) {
    text->pop_back();
  }
  config.api_key = base::Secret(std::move(*text));
  config.origins["apiKey"] = {file_origin.kind, config.api_key_file};
  return {};
}

base::Result<void> check_project_file(const Config& config) {
  if (config.api_key.empty() || origin_of(config, "apiKey").kind == OriginKind::kProjectFile) return {};
  for (const char* key : {"apiUrl", "domain", "sandboxUrl"}) {
    const Origin origin = origin_of(config, key);
    if (origin.kind != OriginKind::kProjectFile) continue;
    return not_valid(
        name_of(key, origin),
        "a project file may not say where your key is sent; set it in the environment or in your "
        "own configuration");
  }
  return {};
}

base::Result<void> apply_all(Config& config, const ConfigSources& sources) {
  const Environment env = environment_of(sources);
  apply_login(config, env);
  if (const auto path = user_config_path(env)) {
    if (auto done = apply_file(config, *path, OriginKind::kUserFile); !done) return done;
  }
  if (const auto path = find_project_file(sources.project_dir)) {
    if (auto done = apply_file(config, *path, OriginKind::kProjectFile); !done) return done;
  }
  if (!sources.config_file.empty()) {
    if (auto done = apply_file(config, sources.config_file, OriginKind::kConfigFile); !done) return done;
  }
  if (auto done = apply_environment(config, sources); !done) return done;
  if (auto done = apply_flags(config, sources); !done) return done;
  if (auto done = read_key_file(config); !done) return done;
  return check_project_file(config);
}

std::string origin_text(const Origin& origin) {
  switch (origin.kind) {
    case OriginKind::kDefault:
      return "default";
    case OriginKind::kLogin:
      return "E2B login file " + origin.where;
    case OriginKind::kUserFile:
      return "user file " + origin.where;
    case OriginKind::kProjectFile:
      return "project file " + origin.where;
    case OriginKind::kConfigFile:
      return "--config " + origin.where;
    case OriginKind::kEnvironment:
      return "environment " + origin.where;
    case OriginKind::kFlag:
      return "flag " + origin.where;
  }
  return {};
}

}  // namespace

ConfigSources process_sources() {
  ConfigSources sources;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const auto equals = text.find('=');
    if (equals == std::string_view::npos) continue;
    sources.environment.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return sources;
}

Environment environment_of(const ConfigSources& sources) {
  return [map = sources.environment](const std::string& name) -> std::optional<std::string> {
    const auto it = map.find(name);
    return it == map.end() ? std::nullopt : std::optional<std::string>(it->second);
  };
}

base::Result<Config> load_config(const ConfigSources& sources) {
  Config config;
  if (auto done = apply_all(config, sources); !done) return std::move(done).error();
  return config;
}

base::Result<void> require_enabled(const Config& config) {
  if (!config.enabled) return fill_error(ErrorCode::kDisabled);
  return {};
}

base::Result<void> require_api_key(const Config& config) {
  const std::string& key = config.api_key.reveal();
  if (key.empty()) return fill_error(ErrorCode::kAuthMissing);
  // Whatever the check of the format says: a key that could end a header line is never sent.
  const bool fit = std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  const bool format = key.starts_with("e2b_") && key.size() > 4 &&
                      key.find_first_not_of("0123456789abcdefABCDEF", 4) == std::string::npos;
  if (!fit || (config.validate_api_key && !format)) return fill_error(ErrorCode::kAuthFormat);
  return {};
}

std::string control_plane_url(const Config& config) {
  if (!config.api_url.empty()) return config.api_url;
  return config.debug ? "http://localhost:3000" : "https://api." + config.domain;
}

std::vector<ShownValue> show_config(const Config& config) {
  std::vector<ShownValue> shown;
  for (const auto& setting : detail::settings()) {
    const std::string key(setting.key);
    shown.push_back({key, setting.show(config), origin_text(origin_of(config, key))});
  }
  return shown;
}

}  // namespace nearbox::api
