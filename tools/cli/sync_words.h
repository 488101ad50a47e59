// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

// What people read of a sync.
namespace nearbox::cli {

std::string size_words(std::uint64_t bytes);  // "5.2 kB"
// The result in words, several lines.
std::string sync_words(const nlohmann::json& result);
// One line, at most `width` columns: a bar, files and bytes.
std::string sync_bar(const nlohmann::json& progress, std::size_t width);

}  // namespace nearbox::cli
