// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::ignore {

// Opens `path` below the directory `root`: no component may be a symlink, none may lead out of the root or
// onto another mount, whatever is changed meanwhile. "" is the root itself. Errors: ELOOP a symlink, EXDEV
// another mount, ENOENT, ENOTDIR, … Source: openat2(2), Linux 5.6; without it the path is opened component by
// component.
base::Result<base::UniqueFd> open_beneath(int root, std::string_view path, int flags);

}  // namespace nearbox::ignore
