// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/messages.h"
#include "tools/agent/fs_path.h"

// Extended attributes: "user." ones alone travel; others belong to the sandbox's system.
namespace nearbox::agent {

bool user_xattr(const std::string& name);

// A descriptor for f*xattr(2) of a file or directory. EPERM: of a type that has no user attributes.
base::Result<base::UniqueFd> open_for_xattr(const Place& place, wire::NodeId expect);

base::Result<wire::Bytes> get_xattr(int fd, const std::string& name);
// The names, each with its NUL.
base::Result<wire::Bytes> list_xattrs(int fd);

}  // namespace nearbox::agent
