// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fs/fuse/request.h"

namespace nearbox::fs {

// The table libfuse calls: unpacks arguments, wraps the request, calls the Session of its userdata.
const fuse_lowlevel_ops& libfuse_ops();

inline constexpr unsigned kMaxBackground = 8192;  // held reads below this do not stop others in the kernel
inline constexpr unsigned kCongestion = 6144;

}  // namespace nearbox::fs
