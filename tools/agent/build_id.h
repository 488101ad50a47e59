// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace nearbox::agent {

// The first 16 hexadecimal digits of the SHA-256 of a file's bytes; "" when it cannot be read.
std::string content_hash(const char* path);

// That of the program that runs; the version number where /proc is missing.
std::string build_id();

}  // namespace nearbox::agent
