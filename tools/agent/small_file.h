// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace nearbox::agent {

// The whole file, or nothing when it cannot be opened, read, or is larger than `limit` bytes.
std::optional<std::string> read_small_file(const std::string& path, std::size_t limit);

// Writes `text` with one open and write, as kernel files want it. True when all was taken.
bool write_kernel_file(const char* path, const std::string& text);

}  // namespace nearbox::agent
