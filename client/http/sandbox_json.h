// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/api/control_plane.h"

// The control plane's JSON: checked, bounded, and types of ours when it comes out.
namespace nearbox::http {

enum class CreateForm { kFirst, kSecond };
std::string create_body(const api::CreateOptions& options, CreateForm form);
std::string timeout_body(std::chrono::milliseconds timeout);
// The `metadata` query value of a list call, encoded as the server decodes it.
std::string metadata_query(const std::map<std::string, std::string>& metadata);
std::string percent_encode(std::string_view text);

// nullopt: not the shape it should have, or a value that cannot be used safely.
std::optional<api::SandboxAccess> parse_access(std::string_view json);
std::optional<api::SandboxInfo> parse_info(std::string_view json);
std::optional<std::vector<api::SandboxInfo>> parse_info_list(std::string_view json);
// The message of an error body, made fit for printing; "" when there is none.
std::string error_message(std::string_view json);

}  // namespace nearbox::http
