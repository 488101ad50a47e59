// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::sandbox_server {

// How a sandbox's processes are kept apart from the machine's.
enum class IsolationMode {
  kRoot,    // mount and pid namespaces, real root inside
  kUserns,  // the same within a user namespace that maps one user
  kPlain,   // none: processes of the server's user, HOME in the sandbox's directory
};

inline constexpr std::string_view kUserName = "user";
inline constexpr unsigned kUserUid = 1000;
inline constexpr std::string_view kUserHome = "/home/user";
inline constexpr std::size_t kMaxBinds = 16;

// Whether a workspace may ask for a fresh directory at `path`: absolute, clean, and nothing the
// sandbox's view is made of.
bool valid_bind_path(std::string_view path);

// Makes what is missing of the directories of `path` below the root that `root_fd` names and opens the
// last one (O_PATH). Links on the way stay within that root.
//
// Errors: EINVAL: no valid_bind_path; EACCES: links lead to what the sandbox's view is made of.
base::Result<base::UniqueFd> make_bind_target(int root_fd, const std::string& path);

// Makes the sandbox's view of the machine and moves the calling process into it: fresh /home, /root,
// /tmp and /run, its own /proc, an overlay on the system's directories whose upper layer lies in
// `dir`, everything else read-only, a fresh directory at each of `binds`.
//
// Called once by a single-threaded process that is pid 1 of new pid and mount namespaces.
// Units: `dir` is the sandbox's directory, absolute. Errors: what failed, with the step.
base::Result<void> enter_root(const std::string& dir, IsolationMode mode,
                              const std::vector<std::string>& binds, const std::string& sandbox_id);

}  // namespace nearbox::sandbox_server
