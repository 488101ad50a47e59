// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/surroundings.h"

#include <algorithm>
#include <array>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/wire/messages.h"
#include "tools/agent/small_file.h"

namespace nearbox::agent {
namespace {

constexpr rlim_t kDescriptors = 65536;
constexpr const char* kOomScore = "-900";

bool move_to(const std::string& directory, const std::string& pid) {
  return write_kernel_file((directory + "/cgroup.procs").c_str(), pid);
}

// Version 2: the root, or beside the groups below it where the root takes no processes.
bool leave_unified(const std::string& root, const std::string& pid) {
  if (move_to(root, pid)) return true;
  const auto sibling = root + "/nearbox";
  (void)::mkdir(sibling.c_str(), 0755);
  return move_to(sibling, pid);
}

bool leave_cgroup() {
  const std::string root = "/sys/fs/cgroup";
  const auto pid = std::to_string(::getpid());
  struct stat st {};
  if (::stat((root + "/cgroup.controllers").c_str(), &st) == 0) return leave_unified(root, pid);
  bool left = false;  // version 1: one hierarchy a controller
  constexpr std::array kControllers = {"cpu,cpuacct", "cpu", "memory", "blkio", "pids", "freezer", "cpuset"};
  for (const char* controller : kControllers) left = move_to(root + "/" + controller, pid) || left;
  if (::stat((root + "/unified/cgroup.procs").c_str(), &st) == 0) {
    left = leave_unified(root + "/unified", pid) || left;
  }
  return left;
}

// Where the group of this process takes members, version 2 only; "" for the root.
std::string own_cgroup_procs() {
  const auto text = read_small_file("/proc/self/cgroup", 65536);
  if (!text) return {};
  const auto at = text->rfind("0::/", 0) == 0 ? 0 : text->find("\n0::/");
  if (at == std::string::npos) return {};
  const auto begin = text->find("0::", at) + 3;
  const auto path = text->substr(begin, text->find('\n', begin) - begin);
  return path == "/" ? std::string{} : "/sys/fs/cgroup" + path + "/cgroup.procs";
}

}  // namespace

Surroundings settle_in() {
  Surroundings around;
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < kDescriptors) {
    around.nofile_soft = limit.rlim_cur;
    limit.rlim_cur = std::min(limit.rlim_max, kDescriptors);
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (::geteuid() != 0) return around;
  around.features |= wire::kFeatureRoot;
  auto before = own_cgroup_procs();
  if (leave_cgroup()) {
    around.features |= wire::kFeatureOutOfCgroup;
    around.cgroup_procs = std::move(before);
  }
  if (write_kernel_file("/proc/self/oom_score_adj", kOomScore)) around.features |= wire::kFeatureOomLowered;
  return around;
}

}  // namespace nearbox::agent
