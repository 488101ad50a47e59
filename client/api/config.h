// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/api/state_dir.h"
#include "client/base/result.h"
#include "client/base/secret.h"

namespace nearbox::api {

// Where a value came from; a later kind wins over an earlier one.
enum class OriginKind { kDefault, kLogin, kUserFile, kProjectFile, kConfigFile, kEnvironment, kFlag };
struct Origin {
  OriginKind kind = OriginKind::kDefault;
  std::string where;  // "E2B_DOMAIN", a file's path, "--domain"; empty for a default
};

enum class Provider { kE2b, kLocal };

// All settings, with their defaults. Made by load_config(), then const.
//
// Units: durations in milliseconds, sizes in bytes. An empty optional is "no limit".
struct Config {
  base::Secret api_key;
  std::string api_key_file;
  bool validate_api_key = true;
  bool enabled = true;
  bool debug = false;      // plain HTTP to localhost, as the SDKs do
  bool log_debug = false;  // DEBUG contains "e2b:"
  Provider provider = Provider::kE2b;
  std::string domain = "e2b.app";
  std::string api_url;      // empty: from the domain, see control_plane_url()
  std::string sandbox_url;  // empty: per sandbox
  std::string template_name = "base";
  std::string sandbox_id;
  std::string work_dir;  // default remote directory; empty: the sandbox user's own
  std::chrono::milliseconds sandbox_timeout{300'000};
  std::chrono::milliseconds exec_timeout{300'000};
  std::chrono::milliseconds code_timeout{60'000};
  std::optional<std::chrono::milliseconds> max_execution_time;
  std::vector<std::string> languages;  // empty: all
  std::optional<std::uint64_t> max_code_bytes;
  std::optional<std::uint64_t> max_active_sandboxes;
  std::uint64_t max_concurrent_executions = 16;
  std::uint64_t max_output_bytes = 65'536;
  std::optional<std::uint64_t> auto_trigger_bytes;
  std::map<std::string, std::string> metadata;  // of created sandboxes
  std::map<std::string, std::string> envs;      // of created sandboxes
  bool allow_internet_access = true;
  std::vector<std::string> fetch_deny;                    // [fetch] deny: local programs
  std::optional<std::uint64_t> fetch_max_bytes_per_hour;  // [fetch] max_per_hour, of each local program
  std::uint64_t mirror_max_entries = 4'000'000;           // [mirror] max_entries: names held of one tree

  std::map<std::string, Origin> origins;  // by key; keys that are missing here have their default
  std::vector<std::string> notices;       // for the log at debug level: names that have no effect here
};

// What load_config() looks at. Tests fill it in; programs take process_sources().
struct ConfigSources {
  std::map<std::string, std::string> environment;
  std::vector<std::pair<std::string, std::string>> flags;  // key ("template") and text
  std::string config_file;                                 // --config: .json, else TOML
  std::string project_dir;  // nearbox.toml is looked for here, then upwards to the directory with .git
};
ConfigSources process_sources();
Environment environment_of(const ConfigSources& sources);

// Reads everything in the order flag > environment > --config file > project file > user file >
// E2B's login file > default. Maps (envs, metadata) are merged entry by entry, all else replaced.
// A project file may not say where a key of other origin is sent, nor name a key file: it may come
// from a stranger's repository.
// Errors: arg.unknown names key and file; arg.invalid names the variable or the key and file.
base::Result<Config> load_config(const ConfigSources& sources);

// `disabled` when enabled is false.
base::Result<void> require_enabled(const Config& config);
// auth.missing, auth.format; fine when a key is there and may be sent as a header.
base::Result<void> require_api_key(const Config& config);

// Base address of the control plane, without a slash at the end.
std::string control_plane_url(const Config& config);

struct ShownValue {
  std::string key, value, origin;  // keys and tokens as stars
};
std::vector<ShownValue> show_config(const Config& config);

// "100MB" (decimal), "64MiB" (binary), "4096": bytes; nullopt for anything else.
std::optional<std::uint64_t> parse_size(std::string_view text);

}  // namespace nearbox::api
