// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/metrics.h"

#include <algorithm>
#include <utility>

namespace nearbox::daemon::metrics {

using nlohmann::json;

namespace {

json ratio(std::uint64_t part, std::uint64_t whole) {
  if (whole == 0) return nullptr;
  return static_cast<double>(part) / static_cast<double>(whole);
}

const char* kind_name(wire::WatchKind kind) {
  switch (kind) {
    case wire::WatchKind::kFanotify:
      return "fanotify";
    case wire::WatchKind::kInotify:
      return "inotify";
    case wire::WatchKind::kNone:
      break;
  }
  return "none";
}

}  // namespace

json of_link(const api::LinkStatus& link) {
  return {{"up", link.up},
          {"rtt_ms", static_cast<double>(link.rtt.count()) / 1000.0},
          {"bytes_per_second", link.bytes_per_second},
          {"bytes_in", link.bytes_in},
          {"bytes_out", link.bytes_out},
          {"round_trips", link.calls},
          {"reconnects", link.reconnects},
          {"last_error", link.last_error}};
}

json of_mount(const fs::MountStats& mount) {
  return {{"parked_requests", mount.parked},      {"inodes", mount.inodes},
          {"requests", mount.requests},           {"bytes_read", mount.bytes_read},
          {"bytes_written", mount.bytes_written}, {"invalidations", mount.invalidations}};
}

json of_tree(const sync::TreeStore& tree) {
  const auto now = tree.tree_status();
  return {{"nodes", now.nodes},
          {"entries", now.names},
          {"memory_bytes", now.memory_bytes},
          {"mode", now.by_directory ? "expanded directories" : "whole"},
          {"max_entries", now.budget},
          {"pinned", now.pinned},
          {"collapsed", now.collapsed}};
}

const char* how_name(wire::MountHow how) {
  switch (how) {
    case wire::MountHow::kWatched:
      return "watched";
    case wire::MountHow::kForeign:
      return "foreign";
    case wire::MountHow::kEmpty:
      return "empty";
    case wire::MountHow::kUnwatched:
      break;
  }
  return "unwatched";
}

json of_watch(const sync::TreeStore::WatchStatus& watch) {
  const auto& at = watch.position;
  auto mounts = json::array();
  for (const auto& mount : watch.mounts) {
    mounts.push_back({{"path", mount.path}, {"type", mount.type}, {"how", how_name(mount.how)}});
  }
  return {{"kind", kind_name(watch.kind)},
          {"error", watch.error},
          {"subtrees", watch.subtrees},
          {"watched", watch.watched},
          {"seq", at.handled},
          {"lag", at.newest - std::min(at.newest, at.handled)},
          {"states", watch.changed},
          {"lost", watch.lost},
          {"unknown", watch.unknown},
          {"looking_again", watch.looking_again},
          {"mounts", std::move(mounts)},
          {"mounts_left_out", watch.mounts_left_out}};
}

json of_cache(const fs::BlockCacheStats& cache) {
  return {{"bytes", cache.bytes},
          {"fetched", cache.fetched},
          {"hits", cache.hits},
          {"misses", cache.misses},
          {"hit_rate", ratio(cache.hits, cache.hits + cache.misses)},
          {"fetches_in_flight", cache.fetches},
          {"waiting_reads", cache.waiters}};
}

json of_prefetch(const fs::PrefetchStats& prefetch) {
  return {{"asked_bytes", prefetch.asked_bytes},
          {"used_bytes", prefetch.used_bytes},
          {"efficiency", ratio(prefetch.used_bytes, prefetch.asked_bytes)},
          {"read_bytes", prefetch.read_bytes},
          {"unforeseen", prefetch.unforeseen}};
}

json of_programs(const std::vector<fs::ProgramStats>& programs) {
  auto list = json::array();
  for (const auto& one : programs) {
    list.push_back({{"name", one.name}, {"fetched_bytes", one.fetched_bytes}, {"refused", one.refused}});
  }
  return list;
}

}  // namespace nearbox::daemon::metrics
