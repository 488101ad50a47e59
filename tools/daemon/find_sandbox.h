// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "client/api/control_plane.h"

namespace nearbox::daemon {

inline constexpr const char* kNameKey = "nearbox.name";  // metadata of sandboxes that have a name

// The sandbox of that id; with `by_name` also the one created under that name.
// Errors: sandbox.not_found; arg.invalid when several have the name.
base::Result<api::SandboxId> find_sandbox(api::ControlPlane& plane, const std::string& text, bool by_name,
                                          api::Deadline deadline);

}  // namespace nearbox::daemon
