// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

#include <nlohmann/json.hpp>

#include "tools/sandbox_server/sandbox.h"

// What control plane requests ask for, checked.
namespace nearbox::sandbox_server {

inline constexpr std::chrono::seconds kDefaultV1{15};
inline constexpr std::chrono::seconds kDefaultV2{300};

// An answer that is no success; thrown by the control plane's own functions alone, caught in
// ControlPlane::serve().
struct ApiError {
  int status;
  std::string message;
};

// Whole seconds of a field, `other` where it is missing; below `least` is an ApiError.
std::chrono::seconds timeout_of(const nlohmann::json& body, const char* key, std::chrono::seconds other,
                                std::int64_t least);

// A request to create a sandbox. ApiError 400 for what is wrong, 501 for what this server cannot do
// (it would be a lie to make a sandbox that is less closed than asked); json's exceptions for wrong types.
SandboxSpec spec_of(const nlohmann::json& body, bool second_generation);

// 501 where a request wants the network restricted or changed.
void refuse_network(const nlohmann::json& network);

// The Idempotency-Key of a request. ApiError 400: it is none.
std::string idempotency_key_of(std::string_view header);

}  // namespace nearbox::sandbox_server
