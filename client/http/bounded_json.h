// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string_view>

#include <nlohmann/json.hpp>

namespace nearbox::http {

inline constexpr int kMaxJsonDepth = 16;
inline constexpr std::size_t kMaxJsonElements = 256 * 1024;           // values, objects and arrays
inline constexpr std::size_t kMaxJsonListElements = 4 * 1024 * 1024;  // of a directory's list

// JSON from a sandbox. What is malformed, nested deeper than kMaxJsonDepth or has more than
// `max_elements` is a discarded value; no more than these are ever kept in memory.
nlohmann::json parse_bounded(std::string_view text, std::size_t max_elements = kMaxJsonElements);

}  // namespace nearbox::http
