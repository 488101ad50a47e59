// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <nlohmann/json.hpp>

#include "client/api/agent_link.h"
#include "fs/core/readers.h"
#include "fs/fuse/mount_session.h"

// The counters of `nearbox status --json` and `nearbox top`, as docs/metrics.md names them.
// Units: bytes, milliseconds, bytes a second; ratios from 0 to 1, null where nothing was counted yet.
namespace nearbox::daemon::metrics {

nlohmann::json of_link(const api::LinkStatus& link);
nlohmann::json of_mount(const fs::MountStats& mount);
nlohmann::json of_tree(const sync::TreeStore& tree);
nlohmann::json of_watch(const sync::TreeStore::WatchStatus& watch);
nlohmann::json of_cache(const fs::BlockCacheStats& cache);
nlohmann::json of_prefetch(const fs::PrefetchStats& prefetch);
nlohmann::json of_programs(const std::vector<fs::ProgramStats>& programs);

}  // namespace nearbox::daemon::metrics
