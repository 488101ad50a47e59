// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "client/api/config.h"

// Between the files that make a Config; nobody else includes this.
namespace nearbox::api::detail {

// One value as a file or a variable had it. Text (environment, flags) is parsed by the setting.
using StringMap = std::map<std::string, std::string>;
struct Value {
  std::variant<bool, std::int64_t, std::string, std::vector<std::string>, StringMap> data;
  bool is_text = false;
};

struct Setting {
  std::string_view key;
  std::vector<std::string_view> variables;  // the first one that is set counts
  // Stores the value. Returns why it cannot, or "".
  std::string (*apply)(Config& config, const Value& value);
  std::string (*show)(const Config& config);
};
std::span<const Setting> settings();
const Setting* find_setting(std::string_view key);

// Files of keys and values. Errors: arg.invalid naming the file; ENOENT when there is none.
inline constexpr std::size_t kMaxConfigFile = 1024 * 1024;
base::Result<std::map<std::string, Value>> read_config_file(const std::string& path);
base::Result<std::string> read_small_file(const std::string& path, std::size_t limit);
// A JSON object whose values are strings; nullopt for anything else.
std::optional<StringMap> parse_string_map(const std::string& json);
// The key in the E2B command line's login file, or "".
std::string login_key(const std::string& json);

}  // namespace nearbox::api::detail
