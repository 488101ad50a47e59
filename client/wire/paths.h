// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace nearbox::wire {

// One component: 1–255 bytes, not "." or "..", no '/' and no NUL. Any other byte is a name's right.
bool valid_name(std::string_view name);

// "" or components joined by single '/', each valid_name(), at most kMaxPath - 1 bytes in all.
bool valid_path(std::string_view path);

}  // namespace nearbox::wire
