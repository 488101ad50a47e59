// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <sys/types.h>

namespace nearbox::sandbox_server {

// What a sandbox's processes use at one moment. Of the machine: the sandbox has no limits of its own.
struct Usage {
  std::chrono::system_clock::time_point time;
  std::chrono::nanoseconds cpu{0};  // since the sandbox began
  double cpu_used_pct = 0;          // of one processor, since the sample before
  std::uint64_t mem_used = 0;
  std::uint64_t mem_cache = 0;  // pages shared with files
  std::uint64_t mem_total = 0;
  std::uint64_t disk_used = 0;
  std::uint64_t disk_total = 0;
  long cpu_count = 1;
};

// The processes below `init` and the file system of `dir`. Source: proc(5), stat and statm.
Usage usage_of(pid_t init, const std::string& dir);

}  // namespace nearbox::sandbox_server
