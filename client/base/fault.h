// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace nearbox::base::fault {

// Fault points: named places where a test changes what the program does.
//
// A point is active when the file named by NEARBOX_FAULT_FILE has a line `NAME` or
// `NAME PATTERN` (fnmatch on `subject`). The file is read again at the first question after 20 ms, so that
// a test switches points while the program runs. A program started
// without the variable reads <its state directory>/faults when set_file() named one.
// Builds without NEARBOX_FAULT_POINTS (the release preset) have none: active() is a constant.
// Threads: any.
#if defined(NEARBOX_FAULT_POINTS)
bool active(std::string_view name, std::string_view subject = {}) noexcept;
void set_file(std::string_view path);
#else
inline bool active(std::string_view, std::string_view = {}) noexcept { return false; }
inline void set_file(std::string_view) {}
#endif

}  // namespace nearbox::base::fault
