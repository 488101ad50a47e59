// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <sys/types.h>
#include <vector>

namespace nearbox::sandbox_server {

// The living processes below `ancestor`, from /proc. One that ends meanwhile is left out.
std::vector<pid_t> descendants_of(pid_t ancestor);

// Whether what listens on 127.0.0.1:`port` belongs to processes below `ancestor`, and to them alone.
bool descendants_listen(pid_t ancestor, std::uint16_t port);

}  // namespace nearbox::sandbox_server
