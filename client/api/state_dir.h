// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "client/base/result.h"

namespace nearbox::api {

// Looks up an environment variable; nullopt when it is not set. Tests give their own.
using Environment = std::function<std::optional<std::string>(const std::string&)>;
Environment process_environment();

// The user's home: HOME where it is an absolute path, else the entry in the user database.
base::Result<std::string> home_dir(const Environment& env);

// $XDG_CONFIG_HOME/nearbox/config.toml; relative values of the variable count as not set.
base::Result<std::string> user_config_path(const Environment& env);

// $XDG_STATE_HOME/nearbox (else ~/.local/state/nearbox), made with mode 0700 when it is missing.
// Errors: EPERM when the directory belongs to somebody else, ENOTDIR when it is a symlink or no directory.
base::Result<std::string> state_dir(const Environment& env);

}  // namespace nearbox::api
