// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <functional>

#include "sync/core/mirror_impl.h"

// What keeps the mirror within a bound: names of directories that were not looked into for long go, and come
// again when somebody looks.
namespace nearbox::sync {

using compact::DentryIndex;

// ---- the line of directories that may collapse

// Under the shared lock as well.
void Mirror::Impl::mark_used(NodeIndex in) const {
  if (!is_dir(in)) return;
  const std::atomic_ref<std::uint8_t> mark(dir(in).used);
  if (mark.load(std::memory_order_relaxed) == 0) mark.store(1, std::memory_order_relaxed);
}

void Mirror::Impl::join_line(NodeIndex in) {
  auto& one = dir(in);
  if (one.in_line) return;
  one.in_line = true;
  one.used = 0;
  one.before = line.newest;
  one.after = kNoNode;
  (line.newest != kNoNode ? dir(line.newest).after : line.oldest) = in;
  line.newest = in;
  ++line.dirs;
  line.names += one.entries.size();
}

void Mirror::Impl::leave_line(NodeIndex in) {
  auto& one = dir(in);
  if (!one.in_line) return;
  one.in_line = false;
  (one.before != kNoNode ? dir(one.before).after : line.oldest) = one.after;
  (one.after != kNoNode ? dir(one.after).before : line.newest) = one.before;
  --line.dirs;
  line.names -= one.entries.size();
}

void Mirror::Impl::now_expanded(NodeIndex in) {
  dir(in).collapsed = false;
  if (dir(in).listing == Listing::kComplete) forget_places(in);
  leave_line(in);
  if (dir(in).entries.size() > 0) join_line(in);
}

void Mirror::Impl::remove_entry(DentryIndex d) {
  auto& in = dir(dentries[d].dir);
  in.entries.remove(d, dentries);
  if (in.in_line) --line.names;
}

// ---- places of names that went

namespace {
std::uint64_t hash_of(std::string_view name) { return std::hash<std::string_view>{}(name); }
}  // namespace

// The cookie of a new name: that which it had before its directory collapsed.
std::uint64_t Mirror::Impl::place_of(NodeIndex in, std::string_view name) {
  const auto found = places.empty() ? places.end() : places.find(in);
  if (found == places.end()) return next_cookie++;
  auto& known = found->second;
  if (!std::exchange(known.sorted, true)) std::sort(known.cookies.begin(), known.cookies.end());
  const auto hash = hash_of(name);
  for (auto at = std::lower_bound(known.cookies.begin(), known.cookies.end(),
                                  std::make_pair(hash, std::uint64_t{0}));
       at != known.cookies.end() && at->first == hash; ++at) {
    if (at->second != 0) return std::exchange(at->second, 0);
  }
  return next_cookie++;
}

void Mirror::Impl::remember_place(NodeIndex in, DentryIndex d) {
  if (nodes[in].pins == 0) return;  // nobody reads it
  const auto [at, fresh] = places.try_emplace(in);
  if (fresh) places_order.push_back(in);
  at->second.cookies.emplace_back(hash_of(name_of(d)), dentries[d].cookie);
  at->second.sorted = false;
  if (++places_count <= kMaxPlaces && places_order.size() <= 2 * places.size() + 64) return;
  while (places_count > kMaxPlaces && !places_order.empty()) {
    const auto oldest = places_order.front();
    places_order.pop_front();
    if (oldest != in || places_order.empty()) forget_places(oldest);
  }
  std::erase_if(places_order, [&](NodeIndex one) { return !places.contains(one); });
}

void Mirror::Impl::forget_places(NodeIndex in) {
  const auto found = places.empty() ? places.end() : places.find(in);
  if (found == places.end()) return;
  places_count -= found->second.cookies.size();
  places.erase(found);
}

// ---- collapsing

bool Mirror::Impl::being_listed(NodeIndex in) const {
  return std::any_of(unfinished.begin(), unfinished.end(),
                     [&](const auto& one) { return one.first.second == in; });
}

bool Mirror::Impl::needed(NodeIndex node) const {
  return nodes[node].pins > 0 || (is_dir(node) && dir(node).entries.size() > 0);
}

void Mirror::Impl::collapse(NodeIndex in, Changes& changes) {
  leave_line(in);
  const auto entries = std::exchange(dir(in).entries, {});
  const bool doubted = dir(in).in_doubt || dir(in).listing == Listing::kStale;
  dir(in).listing = Listing::kUnknown;
  dir(in).error = 0;
  dir(in).collapsed = true;
  if (emptied) emptied({devices.number(nodes[in].device), nodes[in].ino, nodes[in].birth});
  // The kernel may have a copy of the listing, which nothing here could correct from now on.
  if (nodes[in].pins > 0) changes.push_back({Change::Kind::kListing, kNoNode, in, {}});
  entries.each([&](DentryIndex d) {
    const auto node = dentries[d].node;
    if (needed(node)) {
      dir(in).entries.add(d);
      if (nodes[node].pins > 0)
        changes.push_back({Change::Kind::kUnneeded, node, in, std::string(name_of(d))});
      return;
    }
    remember_place(in, d);
    discard(d);
    release(node);
  });
  dir(in).in_doubt = doubted && needed(in);
  dir(in).entries.trim();
  collapse_empty(in);
}

// Of a collapsed directory.
void Mirror::Impl::forget_name(DentryIndex d) {
  const auto in = dentries[d].dir, node = dentries[d].node;
  remember_place(in, d);
  remove_entry(d);
  discard(d);
  release(node);
  if (emptied) emptied({devices.number(nodes[in].device), nodes[in].ino, nodes[in].birth});
}

// The node has no pins any more: it goes with its last name, and names in collapsed directories go now.
void Mirror::Impl::unneeded(NodeIndex node) {
  if (nodes[node].names == 0) return release(node);
  if (is_dir(node)) forget_places(node);
  if (needed(node)) return;
  std::vector<DentryIndex> gone;
  for (auto d = nodes[node].names; d != 0; d = dentries[d].next_name) {
    if (dir(dentries[d].dir).collapsed) gone.push_back(d);
  }
  for (const auto d : gone) {
    const auto in = dentries[d].dir;
    forget_name(d);
    collapse_empty(in);
  }
}

// A directory without names in one that is collapsed goes too.
void Mirror::Impl::collapse_empty(NodeIndex in) {
  while (in != kRoot && dir(in).entries.size() == 0 && nodes[in].names != 0) {
    const auto d = nodes[in].names;
    const auto up = dentries[d].dir;
    if (!dir(up).collapsed) return;
    if (nodes[in].pins > 0) {
      late.push_back({Change::Kind::kUnneeded, in, up, std::string(name_of(d))});
      return;
    }
    forget_name(d);
    in = up;
  }
}

// ---- the public face

bool Mirror::collapse(NodeIndex dir, Changes& changes) {
  if (!impl_->is_dir(dir) || !impl_->alive(dir) || impl_->being_listed(dir)) return false;
  impl_->collapse(dir, changes);
  return true;
}

Mirror::Collapsed Mirror::collapse_oldest(std::size_t down_to, std::size_t examine,
                                          const std::function<bool(NodeIndex dir)>& keep, Changes& changes) {
  auto& impl = *impl_;
  Collapsed did;
  while (did.examined < examine && impl.line.names > down_to && impl.line.oldest != kNoNode) {
    const auto in = impl.line.oldest;
    ++did.examined;
    if (std::exchange(impl.dir(in).used, 0) != 0 || impl.being_listed(in) || keep(in)) {
      ++did.spared;
      impl.leave_line(in);
      impl.join_line(in);
      continue;
    }
    const auto before = impl.dentries.used();
    impl.collapse(in, changes);
    did.names += before - impl.dentries.used();
    ++did.dirs;
  }
  return did;
}

NodeIndex Mirror::tell_unneeded(NodeIndex from, std::size_t examine, std::size_t most,
                                Changes& changes) const {
  const auto& impl = *impl_;
  const auto told = changes.size();
  auto node = std::max<NodeIndex>(from, kRoot + 1);
  for (; examine > 0 && impl.nodes.holds(node) && changes.size() - told < most; --examine, ++node) {
    const bool held = impl.nodes[node].used && impl.nodes[node].pins > 0;
    if (!held || (impl.is_dir(node) && impl.dir(node).entries.size() > 0)) continue;
    for (auto d = impl.nodes[node].names; d != 0; d = impl.dentries[d].next_name) {
      const auto in = impl.dentries[d].dir;
      if (impl.dir(in).collapsed)
        changes.push_back({Change::Kind::kUnneeded, node, in, std::string(impl.name_of(d))});
    }
  }
  return impl.nodes.holds(node) ? node : kNoNode;
}

bool Mirror::collapsed(NodeIndex dir) const { return impl_->is_dir(dir) && impl_->dir(dir).collapsed; }
std::size_t Mirror::expanded_dirs() const { return impl_->line.dirs; }
std::size_t Mirror::expanded_names() const { return impl_->line.names; }
std::size_t Mirror::pinned_count() const { return impl_->pinned; }

void Mirror::take_late(Changes& changes) {
  if (impl_->late.empty()) return;
  changes.insert(changes.end(), std::make_move_iterator(impl_->late.begin()),
                 std::make_move_iterator(impl_->late.end()));
  impl_->late.clear();
}

}  // namespace nearbox::sync
