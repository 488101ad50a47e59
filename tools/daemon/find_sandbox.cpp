// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/find_sandbox.h"

#include "client/api/error_code.h"

namespace nearbox::daemon {

base::Result<api::SandboxId> find_sandbox(api::ControlPlane& plane, const std::string& text, bool by_name,
                                          api::Deadline deadline) {
  auto id = api::SandboxId::parse(text);
  if (!by_name) return id;
  api::ListFilter filter;
  filter.metadata = {{kNameKey, text}};
  filter.limit = 2;
  auto named = plane.list(filter, deadline);
  if (!named) return std::move(named).error();
  if (named->sandboxes.size() > 1) {
    return api::make_error(api::ErrorCode::kArgInvalid, "SANDBOX is not valid: several sandboxes are named " +
                                                            text + "; use an id of nearbox sandbox list");
  }
  if (named->sandboxes.size() == 1) return named->sandboxes.front().id;
  if (id) return id;
  return api::fill_error(api::ErrorCode::kSandboxNotFound, {{"ID", text}});
}

}  // namespace nearbox::daemon
