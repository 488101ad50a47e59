// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/surroundings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "client/wire/messages.h"
#include "tools/agent/small_file.h"

namespace nearbox::agent {
namespace {

constexpr rlim_t kDescriptors = 65536;
constexpr int kOomScore = -900;

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

bool leave_cgroup(const std::string& root) {
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
std::string own_cgroup_procs(const KernelTrees& trees) {
  const auto text = read_small_file(trees.proc + "/self/cgroup", 65536);
  if (!text) return {};
  const auto at = text->rfind("0::/", 0) == 0 ? 0 : text->find("\n0::/");
  if (at == std::string::npos) return {};
  const auto begin = text->find("0::", at) + 3;
  const auto path = text->substr(begin, text->find('\n', begin) - begin);
  return path == "/" ? std::string{} : trees.cgroup + path + "/cgroup.procs";
}

// Below kOomScore only a process with CAP_SYS_RESOURCE may go; back to 0 from what a build set any may.
// Source: linux v5.15 fs/proc/base.c, __set_oom_adj().
bool lower_oom_score(const std::string& proc) {
  const auto path = proc + "/self/oom_score_adj";
  const auto text = read_small_file(path, 64);
  int now = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), now).ec != std::errc{})
    return false;
  if (now <= kOomScore) return true;
  return write_kernel_file(path.c_str(), std::to_string(kOomScore)) ||
         (now > 0 && write_kernel_file(path.c_str(), "0"));
}

}  // namespace

Surroundings leave_limits(const KernelTrees& trees) {
  Surroundings around;
  auto before = own_cgroup_procs(trees);
  if (leave_cgroup(trees.cgroup)) {
    around.features |= wire::kFeatureOutOfCgroup;
    around.cgroup_procs = std::move(before);
  }
  if (lower_oom_score(trees.proc)) around.features |= wire::kFeatureOomLowered;
  return around;
}

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
  auto left = leave_limits({});
  around.features |= left.features;
  around.cgroup_procs = std::move(left.cgroup_procs);
  return around;
}

}  // namespace nearbox::agent
