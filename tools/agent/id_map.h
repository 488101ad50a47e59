// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

namespace nearbox::agent {

// How many ids a uid_map's text maps; 0 for text that is none.
// Source: user_namespaces(7), "User and group ID mappings".
std::uint64_t mapped_ids(std::string_view uid_map);

// Whether this process, being root, may become other users. Not in a user namespace that maps a
// single id: there root is the one user there is, and all accounts are acted for as it.
bool other_users_exist();

}  // namespace nearbox::agent
