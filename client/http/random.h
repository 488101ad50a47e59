// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace nearbox::http {

// Names that no other client makes, and jitter. From getrandom(2).
std::uint64_t random_u64();
std::string random_hex();  // 16 digits

}  // namespace nearbox::http
