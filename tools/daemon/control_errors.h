// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>

#include "client/base/result.h"

// Errors on their way over the control connection.
namespace nearbox::daemon {

// {"error": text, "errorCode": name, "retryable": bool, "exit": n} and "code": n of an error that has a code
// of ours, else "errno": n.
nlohmann::json error_object(const base::Error& error);
// The Error again, with its code.
base::Error error_from(const nlohmann::json& object);

}  // namespace nearbox::daemon
