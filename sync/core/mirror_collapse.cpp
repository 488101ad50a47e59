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
  stop_dropping(in);
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
  auto& known = at->second;
  if (fresh) known.in_order = places_order.insert(places_order.end(), in);
  known.cookies.emplace_back(hash_of(name_of(d)), dentries[d].cookie);
  known.sorted = false;
  if (++places_count <= kMaxPlaces) return;
  places_order.splice(places_order.end(), places_order, known.in_order);
  forget_places(places_order.front());
}

void Mirror::Impl::forget_places(NodeIndex in) {
  const auto found = places.empty() ? places.end() : places.find(in);
  if (found == places.end()) return;
  places_count -= found->second.cookies.size();
  places_order.erase(found->second.in_order);
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

// Its names go with drop_names(): what was not dropped yet is as what is kept.
void Mirror::Impl::begin_collapse(NodeIndex in, Changes& changes) {
  leave_line(in);
  auto& one = dir(in);
  one.in_doubt = one.in_doubt || one.listing == Listing::kStale;
  one.listing = Listing::kUnknown;
  one.error = 0;
  one.collapsed = true;
  if (emptied) emptied({devices.number(nodes[in].device), nodes[in].ino, nodes[in].birth});
  // The kernel may have a copy of the listing, which nothing here could correct from now on.
  if (nodes[in].pins > 0) changes.push_back({Change::Kind::kListing, kNoNode, in, {}});
  dropping = {in, 0};
}

// Looks at `most` names at most, and returns how many these were. Fewer: it is through.
std::size_t Mirror::Impl::drop_names(std::size_t most, Changes& changes) {
  const auto in = dropping.in;
  std::vector<DentryIndex> some;
  dir(in).entries.each_after(dropping.after, dentries, [&](DentryIndex d) {
    if (some.size() < most) some.push_back(d);
    return some.size() < most;
  });
  if (!some.empty()) dropping.after = dentries[some.back()].cookie;
  const auto before = dentries.used();
  for (const auto d : some) {
    if (keeps(in, d, changes)) continue;
    const auto node = dentries[d].node;
    remember_place(in, d);
    remove_entry(d);
    discard(d);
    release(node);
  }
  // Walks that began between two slices as well: what events told of a name went with it.
  if (emptied && dentries.used() != before)
    emptied({devices.number(nodes[in].device), nodes[in].ino, nodes[in].birth});
  if (some.size() == most) return most;
  dropping = {};
  dir(in).in_doubt = dir(in).in_doubt && needed(in);
  dir(in).entries.trim();
  collapse_empty(in);
  return some.size();
}

bool Mirror::Impl::keeps(NodeIndex in, DentryIndex d, Changes& changes) {
  const auto node = dentries[d].node;
  if (!needed(node)) return false;
  if (nodes[node].pins > 0) changes.push_back({Change::Kind::kUnneeded, node, in, std::string(name_of(d))});
  return true;
}

void Mirror::Impl::stop_dropping(NodeIndex in) {
  if (dropping.in == in) dropping = {};
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
  auto& impl = *impl_;
  if (!impl.is_dir(dir) || !impl.alive(dir) || impl.being_listed(dir)) return false;
  if (impl.dropping.in != kNoNode) impl.drop_names(kMaxNames + 1, changes);
  if (!impl.alive(dir)) return true;
  impl.begin_collapse(dir, changes);
  impl.drop_names(kMaxNames + 1, changes);
  return true;
}

Mirror::Collapsed Mirror::collapse_oldest(std::size_t down_to, AtOnce at_once,
                                          const std::function<bool(NodeIndex dir)>& keep, Changes& changes) {
  auto& impl = *impl_;
  Collapsed did;
  const auto spares = [&](NodeIndex in) { return impl.being_listed(in) || keep(in); };
  const auto names_before = impl.dentries.used();
  auto left = std::max<std::size_t>(at_once.names, 1);
  while (true) {
    if (const auto in = impl.dropping.in; in != kNoNode && spares(in)) {  // somebody looks into it meanwhile
      impl.dropping = {};
      if (impl.dir(in).entries.size() > 0) impl.join_line(in);
    } else if (in != kNoNode) {
      left -= impl.drop_names(left, changes);
    }
    did.unfinished = left == 0;
    if (left == 0 || did.examined == at_once.dirs) break;
    if (impl.line.names <= down_to || impl.line.oldest == kNoNode) break;
    const auto in = impl.line.oldest;
    ++did.examined;
    if (std::exchange(impl.dir(in).used, 0) != 0 || spares(in)) {
      ++did.spared;
      impl.leave_line(in);
      impl.join_line(in);
      continue;
    }
    impl.begin_collapse(in, changes);
    ++did.dirs;
  }
  did.names = names_before - impl.dentries.used();
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
