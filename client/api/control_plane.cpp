// SPDX-License-Identifier: Apache-2.0
#include "client/api/control_plane.h"

#include "client/api/error_code.h"

namespace nearbox::api {

base::Result<SandboxId> SandboxId::parse(std::string_view text) {
  const std::string_view id = text.substr(0, text.find('-'));
  const bool valid = !id.empty() && id.size() <= kMaxSandboxId &&
                     id.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789") == std::string_view::npos;
  if (!valid) {
    return fill_error(ErrorCode::kArgInvalid, {{"NAME", "sandbox " + printable(text, 80)},
                                               {"WHY", "an id has lower-case letters and digits alone"}});
  }
  return SandboxId(std::string(id));
}

}  // namespace nearbox::api
