// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fcntl.h>
#include <unistd.h>

#define TOML_EXCEPTIONS 0
#include <nlohmann/json.hpp>
#include <toml++/toml.h>

#include "client/api/config_internal.h"
#include "client/api/error_code.h"
#include "client/base/unique_fd.h"

namespace nearbox::api::detail {
namespace {

using nlohmann::json;
using Values = std::map<std::string, Value>;

base::Error not_valid(const std::string& what, std::string_view why) {
  return fill_error(ErrorCode::kArgInvalid, {{"NAME", what}, {"WHY", why}});
}

base::Error not_valid_key(std::string_view key, const std::string& path) {
  return not_valid(std::string(key) + " in " + path,
                   "it must be text, a whole number, true or false, a list of text or a table of text");
}

std::optional<Value> from_json(const json& node) {
  if (node.is_boolean()) return Value{node.get<bool>()};
  if (node.is_number_unsigned()) {
    const auto number = node.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
    return Value{static_cast<std::int64_t>(number)};
  }
  if (node.is_number_integer()) return Value{node.get<std::int64_t>()};
  if (node.is_string()) return Value{node.get<std::string>()};
  if (node.is_array()) {
    std::vector<std::string> list;
    for (const auto& item : node) {
      if (!item.is_string()) return std::nullopt;
      list.push_back(item.get<std::string>());
    }
    return Value{std::move(list)};
  }
  if (node.is_object()) {
    StringMap map;
    for (const auto& [name, item] : node.items()) {
      if (!item.is_string()) return std::nullopt;
      map[name] = item.get<std::string>();
    }
    return Value{std::move(map)};
  }
  return std::nullopt;
}

std::optional<Value> from_toml(const toml::node& node) {
  if (const auto* value = node.as_boolean()) return Value{value->get()};
  if (const auto* value = node.as_integer()) return Value{value->get()};
  if (const auto* value = node.as_string()) return Value{value->get()};
  if (const auto* array = node.as_array()) {
    std::vector<std::string> list;
    for (const auto& item : *array) {
      const auto* text = item.as_string();
      if (text == nullptr) return std::nullopt;
      list.push_back(text->get());
    }
    return Value{std::move(list)};
  }
  if (const auto* table = node.as_table()) {
    StringMap map;
    for (const auto& [name, item] : *table) {
      const auto* text = item.as_string();
      if (text == nullptr) return std::nullopt;
      map[std::string(name.str())] = text->get();
    }
    return Value{std::move(map)};
  }
  return std::nullopt;
}

// "fetch" of the settings "fetch.deny" and its like: a table of settings, not one.
bool is_section(std::string_view key) {
  const auto prefix = std::string(key) + ".";
  const auto all = settings();
  return std::any_of(all.begin(), all.end(), [&](const Setting& s) { return s.key.starts_with(prefix); });
}

base::Result<Values> read_json(const std::string& path, const std::string& text) {
  const json root = json::parse(text, nullptr, false);
  if (root.is_discarded() || !root.is_object()) return not_valid(path, "it holds no JSON object");
  Values values;
  for (const auto& [key, node] : root.items()) {
    if (node.is_null()) continue;
    if (node.is_object() && is_section(key)) {
      for (const auto& [name, item] : node.items()) {
        const auto full = key + "." + name;
        auto value = from_json(item);
        if (!value) return not_valid_key(full, path);
        values[full] = std::move(*value);
      }
      continue;
    }
    auto value = from_json(node);
    if (!value) return not_valid_key(key, path);
    values[key] = std::move(*value);
  }
  return values;
}

base::Result<Values> read_toml(const std::string& path, const std::string& text) {
  const toml::parse_result result = toml::parse(text);
  if (!result) {
    const auto& where = result.error().source().begin;
    return not_valid(path,
                     "line " + std::to_string(where.line) + ": " + printable(result.error().description()));
  }
  Values values;
  for (const auto& [key, node] : result.table()) {
    if (const auto* table = node.as_table(); table != nullptr && is_section(key.str())) {
      for (const auto& [name, item] : *table) {
        const auto full = std::string(key.str()) + "." + std::string(name.str());
        auto value = from_toml(item);
        if (!value) return not_valid_key(full, path);
        values[full] = std::move(*value);
      }
      continue;
    }
    auto value = from_toml(node);
    if (!value) return not_valid_key(key.str(), path);
    values[std::string(key.str())] = std::move(*value);
  }
  return values;
}

}  // namespace

base::Result<std::string> read_small_file(const std::string& path, std::size_t limit) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return base::last_errno("read " + path);
  std::string text;
  char buffer[16 * 1024];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read " + path);
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > limit) return base::errno_error(EFBIG, "read " + path);
  }
}

base::Result<Values> read_config_file(const std::string& path) {
  auto text = read_small_file(path, kMaxConfigFile);
  if (!text) {
    if (text.error().as_errno() == ENOENT) return std::move(text).error();
    return not_valid(path, text.error().code.message());
  }
  return path.ends_with(".json") ? read_json(path, *text) : read_toml(path, *text);
}

std::optional<StringMap> parse_string_map(const std::string& text) {
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object()) return std::nullopt;
  auto value = from_json(root);
  if (!value) return std::nullopt;
  return std::get<StringMap>(std::move(value->data));
}

std::string login_key(const std::string& text) {
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object()) return {};
  for (const char* name : {"projectApiKey", "teamApiKey"}) {
    const auto it = root.find(name);
    if (it != root.end() && it->is_string() && !it->get_ref<const std::string&>().empty()) {
      return it->get<std::string>();
    }
  }
  return {};
}

}  // namespace nearbox::api::detail
