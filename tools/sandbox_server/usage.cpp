// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/usage.h"

#include <fcntl.h>
#include <sstream>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "client/base/unique_fd.h"
#include "tools/sandbox_server/proc_tree.h"

namespace nearbox::sandbox_server {
namespace {

std::string read_small(const std::string& path) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text(4096, '\0');
  const auto got = fd ? ::read(fd.get(), text.data(), text.size()) : -1;
  text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  return text;
}

// Time in user and system mode, with that of children that have ended, in clock ticks.
std::uint64_t ticks_of(pid_t pid) {
  const auto text = read_small("/proc/" + std::to_string(pid) + "/stat");
  const auto name_end = text.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  constexpr int kBeforeTimes = 11;  // state … cmajflt
  for (int i = 0; i < kBeforeTimes; ++i) fields >> skipped;
  std::uint64_t sum = 0;
  std::uint64_t value = 0;
  for (int i = 0; i < 4 && fields >> value; ++i) sum += value;
  return sum;
}

}  // namespace

Usage usage_of(pid_t init, const std::string& dir) {
  Usage out;
  out.time = std::chrono::system_clock::now();
  auto all = descendants_of(init);
  all.push_back(init);
  std::uint64_t ticks = 0;
  std::uint64_t resident = 0;
  std::uint64_t shared = 0;
  for (const auto pid : all) {
    ticks += ticks_of(pid);
    std::istringstream pages(read_small("/proc/" + std::to_string(pid) + "/statm"));
    std::uint64_t size = 0;
    std::uint64_t in_memory = 0;
    std::uint64_t of_files = 0;
    if (pages >> size >> in_memory >> of_files) {
      resident += in_memory;
      shared += std::min(of_files, in_memory);
    }
  }
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const auto per_second = static_cast<std::uint64_t>(::sysconf(_SC_CLK_TCK));
  constexpr std::uint64_t kBillion = 1'000'000'000;
  out.cpu = std::chrono::nanoseconds(ticks * (kBillion / per_second));
  out.mem_used = (resident - shared) * page;
  out.mem_cache = shared * page;
  struct sysinfo info {};
  if (::sysinfo(&info) == 0) out.mem_total = info.totalram * info.mem_unit;
  struct statvfs disk {};
  if (::statvfs(dir.c_str(), &disk) == 0) {
    out.disk_total = disk.f_blocks * disk.f_frsize;
    out.disk_used = out.disk_total - disk.f_bavail * disk.f_frsize;
  }
  out.cpu_count = ::sysconf(_SC_NPROCESSORS_ONLN);
  return out;
}

}  // namespace nearbox::sandbox_server
