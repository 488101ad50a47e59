// SPDX-License-Identifier: Apache-2.0
#include "sync/core/mirror_impl.h"

#include <cstring>
#include <random>

namespace nearbox::sync {

using compact::DentryIndex;
using compact::normal;
using compact::same_type;

namespace {

bool content_differs(const wire::Attr& was, const wire::Attr& is) {
  return was.size != is.size || was.mtime_ns != is.mtime_ns || was.version != is.version ||
         (is.version == 0 && was.ctime_ns != is.ctime_ns);
}

// The agent gives none to what it only names, such as the mountpoints of nearbox itself.
bool has_identity(const wire::Attr& attr) { return attr.ino != 0 || attr.dev != 0; }

}  // namespace

std::uint64_t Mirror::Impl::random_key() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

// ---- nodes

wire::Attr Mirror::Impl::attr(NodeIndex i) const {
  const auto& n = nodes[i];
  wire::Attr a;
  a.ino = n.ino, a.dev = devices.number(n.device), a.mode = n.mode, a.nlink = n.nlink;
  a.uid = n.uid, a.gid = n.gid, a.size = n.size, a.blocks = n.blocks;
  a.mtime_ns = n.mtime_ns, a.ctime_ns = n.ctime_ns, a.version = n.version, a.birth = n.birth;
  if ((S_ISCHR(n.mode) || S_ISBLK(n.mode)) && n.more != 0) {
    std::memcpy(&a.rdev, strings.at(n.more), sizeof a.rdev);
  }
  return a;
}

std::string_view Mirror::Impl::target(NodeIndex i) const {
  if (!S_ISLNK(nodes[i].mode) || nodes[i].more == 0) return {};
  const auto* at = strings.at(nodes[i].more);
  std::uint16_t size = 0;
  std::memcpy(&size, at, sizeof size);
  return {at + sizeof size, size};
}

void Mirror::Impl::set_target(NodeIndex i, std::string_view target) {
  auto& n = nodes[i];
  if (n.more != 0) strings.give(n.more, this->target(i).size() + sizeof(std::uint16_t));
  n.more = 0;
  if (target.empty()) return;
  const auto size = static_cast<std::uint16_t>(target.size());
  n.more = strings.take(target.size() + sizeof size);
  std::memcpy(strings.at(n.more), &size, sizeof size);
  std::memcpy(strings.at(n.more) + sizeof size, target.data(), target.size());
}

// All but identity and type, which never change.
void Mirror::Impl::store(NodeIndex i, const wire::Attr& a) {
  auto& n = nodes[i];
  n.mode = a.mode, n.nlink = a.nlink, n.uid = a.uid, n.gid = a.gid, n.size = a.size, n.blocks = a.blocks;
  n.mtime_ns = a.mtime_ns, n.ctime_ns = a.ctime_ns, n.version = a.version;
  if (n.birth == 0) n.birth = a.birth;  // of the identity, where it was not known
  if (!S_ISCHR(a.mode) && !S_ISBLK(a.mode)) return;
  if (n.more == 0) n.more = strings.take(sizeof a.rdev);
  std::memcpy(strings.at(n.more), &a.rdev, sizeof a.rdev);
}

NodeIndex Mirror::Impl::make(const wire::Attr& attr, std::string_view target) {
  const auto i = nodes.take();
  auto& n = nodes[i];
  n.used = true;
  n.ino = attr.ino;
  n.device = devices.take(attr.dev);
  store(i, attr);
  if (S_ISDIR(attr.mode)) n.more = dirs.take();
  if (S_ISLNK(attr.mode)) set_target(i, target);
  n.indexed = has_identity(attr);
  if (n.indexed) by_id.insert(i);
  return i;
}

void Mirror::Impl::update(NodeIndex i, const wire::Attr& given, std::string_view target, Changes& changes) {
  const auto was = attr(i);
  auto is = given;
  if (was.birth != 0) is.birth = was.birth;
  if (is.version != 0 && is.version < was.version) return;  // versions only grow: seen before what is known
  const bool new_target = S_ISLNK(is.mode) && !target.empty() && target != this->target(i);
  if (was == is && !new_target) return;
  store(i, is);
  if (new_target) set_target(i, target);
  const bool data = !S_ISDIR(is.mode) && (new_target || content_differs(was, is));
  changes.push_back({data ? Change::Kind::kData : Change::Kind::kAttr, i, kNoNode, {}});
}

void Mirror::Impl::release(NodeIndex i) {
  auto& n = nodes[i];
  if (n.names != 0 || n.pins != 0 || i == kRoot) return;
  if (n.indexed) by_id.erase(i);
  if (S_ISDIR(n.mode)) {
    leave_line(i);
    stop_dropping(i);
    forget_places(i);
    dirs.give(n.more);
  } else if (S_ISLNK(n.mode)) {
    set_target(i, {});
  } else if (n.more != 0) {
    strings.give(n.more, sizeof(std::uint64_t));
  }
  devices.give(n.device);
  nodes.give(i);
}

// ---- names

void Mirror::Impl::chain(DentryIndex d, NodeIndex node) {
  dentries[d].node = node;
  dentries[d].next_name = nodes[node].names;
  nodes[node].names = d;
}

void Mirror::Impl::unchain(DentryIndex d) {
  auto* at = &nodes[dentries[d].node].names;
  while (*at != d) at = &dentries[*at].next_name;
  *at = dentries[d].next_name;
}

DentryIndex Mirror::Impl::bind(NodeIndex in, std::string_view name, NodeIndex node) {
  const auto d = dentries.take();
  auto& entry = dentries[d];
  entry.dir = in;
  entry.cookie = place_of(in, name);
  entry.hash = compact::hash_name(key, in, name);
  entry.name = strings.take(name.size() + 1);
  *strings.at(entry.name) = static_cast<char>(name.size());
  std::memcpy(strings.at(entry.name) + 1, name.data(), name.size());
  chain(d, node);
  by_name.insert(d);
  join_line(in);
  dir(in).entries.insert(d, dentries);
  ++line.names;
  return d;
}

void Mirror::Impl::discard(DentryIndex d) {
  by_name.erase(d);
  unchain(d);
  strings.give(dentries[d].name, name_of(d).size() + 1);
  dentries.give(d);
}

void Mirror::Impl::unbind(DentryIndex d, Changes& changes) {
  const auto in = dentries[d].dir;
  tell_entry(in, name_of(d), kNoNode, changes);
  tell_listing(in, changes);
  remove_entry(d);
  discard(d);
}

// The name stays, with its cookie, and leads elsewhere.
void Mirror::Impl::repoint(DentryIndex d, NodeIndex node, Changes& changes) {
  const auto in = dentries[d].dir, was = dentries[d].node;
  const std::string name(name_of(d));
  unchain(d);
  chain(d, node);
  tell_entry(in, name, node, changes);
  tell_listing(in, changes);
  if (nodes[was].names == 0) orphan(was, in, name, changes);
}

void Mirror::Impl::orphan(NodeIndex node, NodeIndex in, const std::string& name, Changes& changes) {
  changes.push_back({Change::Kind::kGone, node, in, name});
  if (is_dir(node)) clear_tree(node, changes);
  release(node);
}

// Everything below a directory that has no name any more goes, except nodes with other names or pins.
void Mirror::Impl::clear_tree(NodeIndex top, Changes& changes) {
  std::vector<NodeIndex> left{top};
  while (!left.empty()) {
    const auto in = left.back();
    left.pop_back();
    leave_line(in);
    stop_dropping(in);
    forget_places(in);
    auto entries = std::exchange(dir(in).entries, {});
    dir(in).listing = Listing::kComplete;
    dir(in).collapsed = dir(in).in_doubt = false;
    if (entries.size() > 0) tell_listing(in, changes);
    if (emptied && nodes[in].names == 0)
      emptied({devices.number(nodes[in].device), nodes[in].ino, nodes[in].birth});
    entries.each([&](DentryIndex d) {
      const auto node = dentries[d].node;
      std::string name(name_of(d));
      discard(d);
      const bool gone = nodes[node].names == 0;
      changes.push_back(
          {gone ? Change::Kind::kGone : Change::Kind::kEntry, gone ? node : kNoNode, in, std::move(name)});
      if (!gone) return;
      if (is_dir(node)) {
        left.push_back(node);
      } else {
        release(node);
      }
    });
    if (in != top) release(in);
  }
}

void Mirror::Impl::drop(DentryIndex d, Changes& changes) {
  const auto node = dentries[d].node, in = dentries[d].dir;
  const std::string name(name_of(d));
  unbind(d, changes);
  if (nodes[node].names == 0) orphan(node, in, name, changes);
}

// The identity was given to another file: whatever names the old one had here are out of date.
void Mirror::Impl::retire(NodeIndex node, Changes& changes) {
  if (nodes[node].indexed) by_id.erase(node);
  nodes[node].indexed = false;
  ++nodes[node].pins;  // the loop looks at it after its last name went
  while (nodes[node].names != 0) drop(nodes[node].names, changes);
  --nodes[node].pins;
  release(node);
}

// As retire(), where what was known of the directories that had the names may be wrong in more than that.
void Mirror::Impl::supersede(NodeIndex node, Changes& changes) {
  for (auto d = nodes[node].names; d != 0; d = dentries[d].next_name) {
    auto& in = dir(dentries[d].dir);
    if (in.listing == Listing::kComplete) in.listing = Listing::kStale;
    if (in.collapsed) in.in_doubt = true;
  }
  retire(node, changes);
}

NodeIndex Mirror::Impl::link(NodeIndex in, std::string_view name, const wire::Attr& given,
                             std::string_view target, Changes& changes) {
  if (!is_dir(in) || !alive(in) || name.empty() || name.size() > wire::kMaxName) return kNoNode;
  if (target.size() > wire::kMaxPath) return kNoNode;
  const auto is = normal(given);
  const auto d0 = has_identity(is) ? 0 : find_name(in, name);
  auto node = find(is.dev, is.ino);
  if (d0 != 0 && !nodes[dentries[d0].node].indexed) node = dentries[d0].node;  // known by its name alone
  if (node != kNoNode && is_dir(node) && within(in, node)) return kNoNode;     // also the root
  if (node != kNoNode && !same_type(nodes[node].mode, is.mode)) {
    retire(node, changes);
    node = kNoNode;
  }
  if (node != kNoNode && !wire::same_birth(nodes[node].birth, is.birth)) {
    supersede(node, changes);
    node = kNoNode;
  }
  const auto d = find_name(in, name);
  if (node != kNoNode && d != 0 && dentries[d].node == node) {
    update(node, is, target, changes);
    return node;
  }
  if (node == kNoNode) {
    if (dentries.used() >= kMaxNames || devices.full()) return kNoNode;
    node = make(is, target);
  } else {
    if (is_dir(node) && nodes[node].names != 0) {
      unbind(nodes[node].names, changes);  // it moves
    } else if (is_dir(node)) {
      dir(node).listing = Listing::kUnknown;  // it was taken for gone, and emptied
    }
    update(node, is, target, changes);
  }
  if (d != 0) {
    repoint(d, node, changes);
  } else {
    bind(in, name, node);
    tell_entry(in, name, node, changes, true);
    tell_listing(in, changes);
  }
  return node;
}

void Mirror::Impl::rename(DentryIndex from, NodeIndex to_dir, std::string_view to_name, Changes& changes) {
  const auto node = dentries[from].node;
  const auto to = find_name(to_dir, to_name);
  if (to != 0 && dentries[to].node == node) return;  // rename(2): two names of one file both stay
  if (is_dir(node) && within(to_dir, node)) return;
  unbind(from, changes);
  if (to != 0) {
    repoint(to, node, changes);
  } else {
    bind(to_dir, to_name, node);
    tell_entry(to_dir, to_name, node, changes, true);
    tell_listing(to_dir, changes);
  }
}

void Mirror::Impl::exchange(DentryIndex one, DentryIndex two, Changes& changes) {
  const auto a = dentries[one].node, b = dentries[two].node;
  const auto a_dir = dentries[one].dir, b_dir = dentries[two].dir;
  if (a == b || (is_dir(a) && within(b_dir, a)) || (is_dir(b) && within(a_dir, b))) return;
  unchain(one);
  unchain(two);
  chain(one, b);
  chain(two, a);
  tell_entry(a_dir, name_of(one), b, changes);
  tell_entry(b_dir, name_of(two), a, changes);
  tell_listing(a_dir, changes);
  if (a_dir != b_dir) tell_listing(b_dir, changes);
}

// The directory that a block speaks of; kNoNode when it is not known, or another one lies there now.
NodeIndex Mirror::Impl::block_dir(NodeIndex at_path, const wire::Attr& given, bool anywhere) const {
  const auto is_it = [&](NodeIndex i) { return is_dir(i) && alive(i) && (given.ino == 0 || is(i, given)); };
  if (is_it(at_path)) return at_path;
  const auto other = anywhere && given.ino != 0 ? find(given.dev, given.ino) : kNoNode;
  return other != kNoNode && is_it(other) ? other : kNoNode;
}

// The cookie of the name afterwards, 0 when there is none.
std::uint64_t Mirror::Impl::apply_entry(NodeIndex in, const wire::TreeEntry& entry, bool frozen,
                                        const Newer* newer, Changes& changes) {
  const auto cookie = [&] {
    const auto d = find_name(in, entry.name);
    return d == 0 ? 0 : dentries[d].cookie;
  };
  if (newer != nullptr && newer->name && newer->name(in, entry.name)) return cookie();
  auto is = normal(entry.attr);
  const bool told = newer != nullptr && newer->attr && newer->attr(wire::identity(is));
  const auto known = find(is.dev, is.ino);
  // Its number is a younger file's by now, which an answer to an operation of ours brought: seen before that
  // one was made, so the file of this name is gone. Unless somebody set the clock back.
  if (known != kNoNode && alive(known) && !wire::same_birth(nodes[known].birth, is.birth) &&
      is.ctime_ns < nodes[known].ctime_ns) {
    if (newer != nullptr && newer->unsure) newer->unsure(in);
    return 0;
  }
  if (told) {
    const auto d = find_name(in, entry.name);
    const bool here = d != 0 && dentries[d].node == known;
    const bool other = known != kNoNode && !wire::same_birth(nodes[known].birth, is.birth);
    if (other || (known != kNoNode && is_dir(known) && alive(known) && !here)) {
      if (newer->unsure) newer->unsure(in);
      return cookie();  // it was told to lie elsewhere, and has one name; or its number is another file's
    }
    if (known != kNoNode && same_type(nodes[known].mode, is.mode)) {
      is = attr(known);
    } else if (newer->unsure) {
      newer->unsure(in);  // what was told of it fell on deaf ears
    }
  }
  if (frozen) {
    const auto d = find_name(in, entry.name);
    if (d != 0) {
      const auto node = dentries[d].node;
      const auto was = attr(node);
      if (wire::same_node(was, is) && same_type(was.mode, is.mode) && is.ctime_ns > was.ctime_ns) {
        update(node, is, entry.target, changes);
      }
      return dentries[d].cookie;
    }
    if (dir(in).listing == Listing::kComplete || dir(in).listing == Listing::kStale) return 0;
  }
  if (link(in, entry.name, is, entry.target, changes) == kNoNode && newer != nullptr && newer->unsure) {
    newer->unsure(in);
  }
  return cookie();
}

void Mirror::Impl::remove_unseen(NodeIndex in, std::vector<std::uint64_t>& seen, const Newer* newer,
                                 Changes& changes) {
  std::sort(seen.begin(), seen.end());
  std::vector<DentryIndex> unseen;
  dir(in).entries.each([&](DentryIndex d) {
    if (std::binary_search(seen.begin(), seen.end(), dentries[d].cookie)) return;
    if (newer != nullptr && newer->name && newer->name(in, name_of(d))) return;
    unseen.push_back(d);
  });
  // A directory below an earlier one of these cannot be among them: all are names of `in`.
  for (const auto d : unseen) drop(d, changes);
}

void Mirror::Impl::distrust(NodeIndex top, bool recursive, bool content, Changes& changes) {
  const auto first = changes.size();
  bool all = false;
  const auto tell = [&](Change&& change) {
    if (all) return;
    changes.push_back(std::move(change));
    if (changes.size() - first <= kMaxDistrustTold) return;
    changes.resize(first);
    changes.push_back({Change::Kind::kAll, kNoNode, kNoNode, {}});
    all = true;
  };
  const auto never_shown = [&](const Dir& one) {
    return one.listing == Listing::kUnknown && one.entries.size() == 0 && !one.collapsed;
  };
  if (never_shown(dir(top))) return;
  if (top != kRoot) {  // what hangs below the entry goes with it, absences too
    const auto d = nodes[top].names;
    tell({Change::Kind::kEntry, top, dentries[d].dir, std::string(name_of(d))});
  }
  std::vector<NodeIndex> left{top};
  while (!left.empty()) {
    const auto in = left.back();
    left.pop_back();
    auto& now = dir(in);
    tell({Change::Kind::kNegatives, kNoNode, in, {}});
    if (never_shown(now)) continue;
    const bool nothing = now.listing == Listing::kFailed || now.listing == Listing::kUnknown;
    // Those it holds are not all, so that it is not kStale, which may be shown once it was listed again.
    now.listing = nothing ? Listing::kUnknown : Listing::kStale;
    now.in_doubt = nothing && now.entries.size() > 0;
    tell({Change::Kind::kListing, kNoNode, in, {}});
    now.entries.each([&](DentryIndex d) {
      const auto node = dentries[d].node;
      if (is_dir(node)) {
        if (recursive) left.push_back(node);
      }
      if (all) return;
      tell({Change::Kind::kEntry, node, in, std::string(name_of(d))});
      const bool data = content && !is_dir(node);
      tell({data ? Change::Kind::kData : Change::Kind::kAttr, node, kNoNode, {}});
    });
  }
}

}  // namespace nearbox::sync
