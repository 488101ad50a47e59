// SPDX-License-Identifier: Apache-2.0
#include "sync/core/mirror.h"

#include <algorithm>
#include <cerrno>

#include "sync/core/mirror_impl.h"

namespace nearbox::sync {

using compact::DentryIndex;
using compact::Dir;
using compact::normal;
using compact::same_type;

Mirror::Mirror() : impl_(std::make_unique<Impl>()) {
  wire::Attr root;
  root.mode = S_IFDIR | 0755;
  (void)impl_->make(root, {});  // without identity until set_root()
}
Mirror::~Mirror() = default;

NodeIndex Mirror::find(const wire::NodeId& id) const { return impl_->find(id.dev, id.ino, id.birth); }
bool Mirror::alive(NodeIndex node) const { return impl_->alive(node); }
wire::Attr Mirror::attr(NodeIndex node) const { return impl_->used(node) ? impl_->attr(node) : wire::Attr{}; }
std::string Mirror::target(NodeIndex node) const {
  return impl_->used(node) ? std::string(impl_->target(node)) : std::string();
}
Listing Mirror::listing(NodeIndex node) const {
  return impl_->is_dir(node) ? impl_->dir(node).listing : Listing::kUnknown;
}
int Mirror::error(NodeIndex node) const { return impl_->is_dir(node) ? impl_->dir(node).error : 0; }

NodeIndex Mirror::lookup(NodeIndex dir, std::string_view name) const {
  impl_->mark_used(dir);
  const auto d = impl_->find_name(dir, name);
  return d == 0 ? kNoNode : impl_->dentries[d].node;
}

NodeIndex Mirror::parent(NodeIndex dir) const {
  if (!impl_->alive(dir)) return kNoNode;
  return impl_->parent(dir);
}

std::optional<std::string> Mirror::path(NodeIndex node) const {
  if (!impl_->alive(node)) return std::nullopt;
  std::vector<std::string_view> names;
  std::size_t size = 0;
  for (; node != kRoot; node = impl_->parent(node)) {
    names.push_back(impl_->name_of(impl_->nodes[node].names));
    size += names.back().size() + 1;
  }
  std::string path;
  path.reserve(size);
  for (auto at = names.rbegin(); at != names.rend(); ++at) {
    if (!path.empty()) path += '/';
    path += *at;
  }
  return path;
}

NodeIndex Mirror::walk(NodeIndex from, std::string_view path) const {
  if (!impl_->used(from)) return kNoNode;
  while (!path.empty() && from != kNoNode) {
    const auto slash = path.find('/');
    from = lookup(from, path.substr(0, slash));
    path.remove_prefix(slash == std::string_view::npos ? path.size() : slash + 1);
  }
  return from;
}

void Mirror::list(NodeIndex dir, std::uint64_t cookie,
                  const std::function<bool(std::uint64_t, std::string_view, NodeIndex)>& fn) const {
  if (!impl_->is_dir(dir)) return;
  impl_->mark_used(dir);
  const auto& dentries = impl_->dentries;
  impl_->dir(dir).entries.each_after(cookie, dentries, [&](DentryIndex d) {
    return fn(dentries[d].cookie, impl_->name_of(d), dentries[d].node);
  });
}

std::uint64_t Mirror::cookie(NodeIndex dir, NodeIndex node) const {
  if (!impl_->used(node)) return 0;
  for (auto d = impl_->nodes[node].names; d != 0; d = impl_->dentries[d].next_name) {
    if (impl_->dentries[d].dir == dir) return impl_->dentries[d].cookie;
  }
  return 0;
}

void Mirror::names(NodeIndex node, const std::function<void(NodeIndex, std::string_view)>& fn) const {
  if (!impl_->used(node)) return;
  for (auto d = impl_->nodes[node].names; d != 0; d = impl_->dentries[d].next_name) {
    fn(impl_->dentries[d].dir, impl_->name_of(d));
  }
}

void Mirror::set_root(const wire::Attr& given, Changes& changes) {
  if (!S_ISDIR(given.mode)) return;
  const auto is = normal(given);
  auto& root = impl_->nodes[kRoot];
  const bool same = root.indexed && root.ino == is.ino && impl_->devices.number(root.device) == is.dev;
  if (same) {
    root.birth = is.birth;  // all of it is read again by those who opened it
  } else {
    if (const auto other = impl_->find(is.dev, is.ino); other != kNoNode) impl_->retire(other, changes);
    if (root.indexed) impl_->by_id.erase(kRoot);
    impl_->devices.give(root.device);
    root.device = impl_->devices.take(is.dev);
    root.ino = is.ino;
    root.birth = is.birth;
    root.indexed = true;
    impl_->by_id.insert(kRoot);
    impl_->store(kRoot, is);
    changes.push_back({Change::Kind::kAttr, kRoot, kNoNode, {}});
  }
  impl_->update(kRoot, is, {}, changes);
}

NodeIndex Mirror::link(NodeIndex dir, std::string_view name, const wire::Attr& attr, std::string_view target,
                       Changes& changes) {
  return impl_->link(dir, name, attr, target, changes);
}

void Mirror::unlink(NodeIndex dir, std::string_view name, Changes& changes) {
  if (const auto d = impl_->find_name(dir, name); d != 0) impl_->drop(d, changes);
}

void Mirror::rename(NodeIndex dir, std::string_view name, NodeIndex dir2, std::string_view name2,
                    bool exchange, Changes& changes) {
  const auto from = impl_->find_name(dir, name);
  if (from == 0 || !impl_->is_dir(dir2) || !impl_->alive(dir2)) return;
  if (name2.empty() || name2.size() > wire::kMaxName) return;
  if (!exchange) {
    impl_->rename(from, dir2, name2, changes);
  } else if (const auto to = impl_->find_name(dir2, name2); to != 0) {
    impl_->exchange(from, to, changes);
  }
}

void Mirror::set_attr(NodeIndex node, const wire::Attr& given, Changes& changes) {
  if (!impl_->used(node)) return;
  const auto& n = impl_->nodes[node];
  const auto is = normal(given);
  if (!impl_->is(node, is) || !same_type(n.mode, is.mode)) return;
  impl_->update(node, is, {}, changes);
}

void Mirror::set_listing(NodeIndex dir, Listing listing, int error) {
  if (!impl_->is_dir(dir)) return;
  impl_->dir(dir).listing = listing;
  impl_->dir(dir).error = error;
  if (listing == Listing::kComplete || listing == Listing::kFailed) impl_->dir(dir).in_doubt = false;
  if (listing != Listing::kUnknown && listing != Listing::kFailed) impl_->now_expanded(dir);
}

bool Mirror::doubted(NodeIndex dir) const {
  return impl_->is_dir(dir) && (impl_->dir(dir).listing == Listing::kStale || impl_->dir(dir).in_doubt);
}

void Mirror::supersede(NodeIndex node, Changes& changes) {
  if (node != kRoot && impl_->used(node)) impl_->supersede(node, changes);
}

bool Mirror::proven(NodeIndex node) const { return prover(node) == kNoNode; }

NodeIndex Mirror::prover(NodeIndex node) const {
  const auto& impl = *impl_;
  if (!impl.alive(node)) return kNoNode;
  if (impl.is_dir(node)) {
    // Its own listing brings its attributes as well as that of the directory above.
    const auto own = listing(node), above = node == kRoot ? Listing::kUnknown : listing(impl.parent(node));
    if (own == Listing::kComplete || own == Listing::kPartial) return kNoNode;
    const bool above_doubted = node != kRoot && doubted(impl.parent(node));
    if (!above_doubted && (above == Listing::kComplete || above == Listing::kPartial)) return kNoNode;
    if (doubted(node)) return node;
    return above_doubted ? impl.parent(node) : kNoNode;
  }
  for (auto d = impl.nodes[node].names; d != 0; d = impl.dentries[d].next_name) {
    if (doubted(impl.dentries[d].dir)) return impl.dentries[d].dir;
  }
  return kNoNode;
}

void Mirror::begin_listing(NodeIndex dir, Changes& changes) {
  if (!impl_->is_dir(dir) || !impl_->alive(dir)) return;
  impl_->clear_tree(dir, changes);
  set_listing(dir, Listing::kPartial);
}

void Mirror::forget_versions() {
  impl_->nodes.each_mutable([](compact::Node& node) { node.version = 0; });
}

void Mirror::distrust(NodeIndex top, bool recursive, bool content, Changes& changes) {
  if (impl_->is_dir(top) && impl_->alive(top)) impl_->distrust(top, recursive, content, changes);
}

void Mirror::apply_block(NodeIndex base, const wire::TreeBlock& block, Changes& changes,
                         const std::function<bool(NodeIndex dir)>& skip, std::uint64_t scan,
                         const Newer* newer) {
  const auto dir = impl_->block_dir(walk(base, block.path), block.attr, newer != nullptr);
  if (dir == kNoNode) return;
  const auto was = impl_->attr(dir);
  const bool touched = skip && skip(dir);
  const bool frozen = touched && (newer == nullptr || !newer->by_name || !newer->by_name(dir));
  const bool has_attr = block.attr.ino != 0;  // a directory that could not be looked at has none
  const bool told = newer != nullptr && newer->attr && newer->attr(wire::identity(was));
  if (has_attr && !told && (!touched || block.attr.ctime_ns > was.ctime_ns)) {
    set_attr(dir, block.attr, changes);
  }
  if ((block.flags & wire::kTreeNotExpanded) != 0) return;
  if (newer != nullptr && newer->listing && newer->listing(dir)) return;
  const auto key = std::make_pair(scan, dir);
  if ((block.flags & wire::kTreeFailed) != 0) {
    impl_->unfinished.erase(key);
    set_listing(dir, Listing::kFailed, block.error);
    return;
  }
  std::vector<std::uint64_t> seen;
  if (const auto found = impl_->unfinished.find(key); found != impl_->unfinished.end())
    seen.swap(found->second);
  impl_->quiet_dir = dir;
  impl_->quiet_dir_changed = false;
  const auto kept = [&](const wire::TreeEntry& entry) {
    if (frozen || !skip) return frozen;
    const auto node = lookup(dir, entry.name);
    if (node == kNoNode || impl_->is_dir(node)) return false;
    const auto known = impl_->attr(node);
    return wire::same_node(known, entry.attr) && skip(node);
  };
  for (const auto& entry : block.entries) {
    if (const auto cookie = impl_->apply_entry(dir, entry, kept(entry), newer, changes); cookie != 0)
      seen.push_back(cookie);
  }
  const bool full = impl_->dentries.used() >= kMaxNames;
  const bool stale = listing(dir) == Listing::kStale;
  if (full) {
    impl_->unfinished.erase(key);
    set_listing(dir, Listing::kFailed, ENOMEM);
  } else if ((block.flags & wire::kTreeMore) != 0) {
    if (seen.size() > 2 * impl_->dir(dir).entries.size() + wire::kMaxBlockEntries) {
      std::sort(seen.begin(), seen.end());  // names told again and again: keep each once
      seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    }
    impl_->unfinished[key] = std::move(seen);
    if (listing(dir) != Listing::kComplete && !stale) set_listing(dir, Listing::kPartial);
  } else {
    impl_->unfinished.erase(key);
    if (!frozen) impl_->remove_unseen(dir, seen, newer, changes);
    if (listing(dir) != Listing::kComplete) impl_->dir(dir).entries.trim();
    // Where own operations are under way, names of before them may have come in with the block.
    const bool doubtful =
        frozen && (doubted(dir) || (newer != nullptr && listing(dir) != Listing::kComplete));
    set_listing(dir, doubtful ? Listing::kStale : Listing::kComplete);
  }
  impl_->quiet_dir = kNoNode;
  if (impl_->quiet_dir_changed) changes.push_back({Change::Kind::kListing, kNoNode, dir, {}});
}

void Mirror::on_emptied(std::function<void(const wire::NodeId& dir)> fn) { impl_->emptied = std::move(fn); }

void Mirror::end_scan(std::uint64_t scan) {
  auto& all = impl_->unfinished;
  all.erase(all.lower_bound({scan, kNoNode}), all.lower_bound({scan + 1, kNoNode}));
}

void Mirror::pin(NodeIndex node, std::uint64_t count) {
  if (!impl_->used(node) || count == 0) return;
  auto& pins = impl_->nodes[node].pins;
  if (pins == 0) ++impl_->pinned;
  pins += count;
}

void Mirror::unpin(NodeIndex node, std::uint64_t count) {
  if (!impl_->used(node)) return;
  auto& pins = impl_->nodes[node].pins;
  if (pins == 0) return;
  pins -= std::min(pins, count);
  if (pins != 0) return;
  --impl_->pinned;
  impl_->unneeded(node);
}

std::size_t Mirror::node_count() const { return impl_->nodes.used(); }
std::size_t Mirror::name_count() const { return impl_->dentries.used(); }

std::size_t Mirror::memory_bytes() const {
  std::size_t bytes = sizeof(Impl) + impl_->nodes.memory_bytes() + impl_->dentries.memory_bytes() +
                      impl_->dirs.memory_bytes() + impl_->strings.memory_bytes() +
                      impl_->devices.memory_bytes() + impl_->by_id.memory_bytes() +
                      impl_->by_name.memory_bytes();
  impl_->dirs.each([&](const Dir& dir) { bytes += dir.entries.memory_bytes(); });
  bytes += impl_->places_count * sizeof(std::pair<std::uint64_t, std::uint64_t>);
  bytes += impl_->places_order.size() * (sizeof(compact::Places) + 64);
  for (const auto& [key, seen] : impl_->unfinished) bytes += 80 + seen.capacity() * sizeof(seen[0]);
  return bytes;
}

}  // namespace nearbox::sync
