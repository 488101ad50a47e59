// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/orphans.h"

#include <algorithm>
#include <sys/resource.h>

#include "tools/agent/fs_path.h"

namespace nearbox::agent {

std::size_t OrphanTable::default_limit() {
  struct rlimit limit {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 128;
  return std::min<std::size_t>(kMaxOrphans, static_cast<std::size_t>(limit.rlim_cur) / 2);
}

base::Result<void> OrphanTable::keep(std::uint64_t number, base::UniqueFd fd) {
  base::MutexLock lock(mu_);
  if (files_.size() >= limit_ && files_.count(number) == 0) return base::errno_error(EMFILE, "keep");
  files_[number] = std::make_shared<base::UniqueFd>(std::move(fd));
  return {};
}

base::Result<OrphanTable::FdPtr> OrphanTable::get(std::uint64_t number, wire::NodeId expect) {
  FdPtr file;
  {
    base::MutexLock lock(mu_);
    const auto it = files_.find(number);
    if (it == files_.end()) return base::errno_error(ESTALE, "kept file");
    file = it->second;
  }
  if (expect == wire::NodeId{}) return file;
  auto st = stat_fd(file->get());
  if (!st) return std::move(st).error();
  if (!wire::same_node(node_of(*st), expect)) return base::errno_error(ESTALE, "kept file");
  return file;
}

void OrphanTable::forget(std::uint64_t number) {
  FdPtr old;  // closed outside the lock
  base::MutexLock lock(mu_);
  const auto it = files_.find(number);
  if (it == files_.end()) return;
  old = std::move(it->second);
  files_.erase(it);
}

std::size_t OrphanTable::size() {
  base::MutexLock lock(mu_);
  return files_.size();
}

}  // namespace nearbox::agent
