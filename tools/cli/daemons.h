// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>

#include "client/base/result.h"

namespace nearbox::cli {

// {"version", "daemons": [what each running daemon of this user says of itself]}; see docs/metrics.md.
// A daemon that does not answer in time is left out.
base::Result<nlohmann::json> all_status();

}  // namespace nearbox::cli
