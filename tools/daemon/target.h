// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "client/base/result.h"

namespace nearbox::daemon {

enum class Provider { kE2b, kLocal, kSsh, kDocker };

// What a user names: a sandbox, and perhaps a directory in it.
//
//   ID[:DIR]              a sandbox of E2B (or of the embedded server with --local)
//   local:NAME[:DIR]      a sandbox of the embedded server, by id or by the name given at creation
//   ssh:[USER@]HOST[:DIR] the agent over ssh; an IPv6 address in brackets
//   docker:CONTAINER[:DIR]
struct Target {
  Provider provider = Provider::kE2b;
  std::string name;  // id, NAME, HOST or CONTAINER; never empty, never begins with '-'
  std::string dir;   // as given, "" for the default

  std::string sandbox() const;  // without DIR: "i4k2…", "ssh:host"
};

// Errors: arg.invalid with what is wrong and the forms above.
base::Result<Target> parse_target(std::string_view text, bool local);

}  // namespace nearbox::daemon
