// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <sys/stat.h>

#include <gtest/gtest.h>

#include "sync/core/mirror.h"

namespace nearbox::sync {
namespace {

using wire::Attr;
using wire::NodeId;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

constexpr NodeId kRootId{1, 2};
constexpr NodeId kNone{0, 0};

NodeId id_of(const Attr& a) { return {a.dev, a.ino}; }
bool same_type(const Attr& a, const Attr& b) { return (a.mode & S_IFMT) == (b.mode & S_IFMT); }

// The mirror's rules in the plainest form: maps of identities and names.
class Model {
 public:
  struct Node {
    Attr attr;
    std::string target;
    std::uint64_t pins = 0;
    std::set<std::pair<NodeId, std::string>> names;
    std::map<std::string, NodeId> entries;
    Listing listing = Listing::kUnknown;
    bool collapsed = false;
    bool doubted = false;  // since what it holds was distrusted, whether it collapsed or not
    bool needed() const { return pins > 0 || !entries.empty(); }
  };
  std::map<NodeId, Node> nodes;
  // A name that went and came again is another one: its place in the directory is another.
  std::map<std::pair<NodeId, std::string>, std::uint64_t> places;
  std::uint64_t next_place = 1;

  Model() {
    nodes[kRootId].attr.dev = kRootId.dev;
    nodes[kRootId].attr.ino = kRootId.ino;
    nodes[kRootId].attr.mode = S_IFDIR | 0755;
  }
  bool alive(NodeId id) const { return id == kRootId || (nodes.contains(id) && !nodes.at(id).names.empty()); }
  bool within(NodeId id, NodeId ancestor) const {
    while (id != ancestor && id != kRootId) id = nodes.at(id).names.begin()->first;
    return id == ancestor;
  }
  void release(NodeId id) {
    const auto& n = nodes.at(id);
    if (id != kRootId && n.names.empty() && n.pins == 0) nodes.erase(id);
  }
  void unname(NodeId dir, std::string name) {
    const auto id = nodes.at(dir).entries.at(name);
    nodes.at(dir).entries.erase(name);
    nodes.at(id).names.erase({dir, name});
    places.erase({dir, name});
  }
  void settle(NodeId id) {  // after it lost a name
    if (!nodes.at(id).names.empty()) return;
    while (!nodes.at(id).entries.empty()) unlink(id, nodes.at(id).entries.begin()->first);
    nodes.at(id).listing = Listing::kComplete;
    nodes.at(id).collapsed = nodes.at(id).doubted = false;
    release(id);
  }
  void forget(NodeId dir, const std::string& name) {  // nobody hears of it
    const auto id = nodes.at(dir).entries.at(name);
    unname(dir, name);
    release(id);
  }
  void collapse(NodeId dir) {
    std::vector<std::string> gone;
    for (const auto& [name, id] : nodes.at(dir).entries) {
      if (!nodes.at(id).needed()) gone.push_back(name);
    }
    for (const auto& name : gone) forget(dir, name);
    nodes.at(dir).listing = Listing::kUnknown;
    nodes.at(dir).collapsed = true;
    if (!nodes.at(dir).needed()) nodes.at(dir).doubted = false;
    collapse_empty(dir);
  }
  void distrust(NodeId top, bool recursive) {
    std::vector<NodeId> left{top};
    while (!left.empty()) {
      auto& node = nodes.at(left.back());
      left.pop_back();
      if (node.listing == Listing::kUnknown && node.entries.empty() && !node.collapsed) continue;
      const bool whole = node.listing != Listing::kUnknown && node.listing != Listing::kFailed;
      node.listing = whole ? Listing::kStale : Listing::kUnknown;
      node.doubted = whole || !node.entries.empty();
      for (const auto& [name, id] : node.entries) {
        if (recursive && S_ISDIR(nodes.at(id).attr.mode)) left.push_back(id);
      }
    }
  }
  bool proven(NodeId file) const {
    const auto& names = nodes.at(file).names;
    return std::none_of(names.begin(), names.end(), [&](auto& name) { return nodes.at(name.first).doubted; });
  }
  void collapse_empty(NodeId dir) {
    while (dir != kRootId && nodes.contains(dir) && !nodes.at(dir).needed() && !nodes.at(dir).names.empty()) {
      const auto [up, name] = *nodes.at(dir).names.begin();
      if (!nodes.at(up).collapsed) return;
      forget(up, name);
      dir = up;
    }
  }
  void unpin(NodeId id) {
    if (--nodes.at(id).pins > 0) return;
    if (nodes.at(id).names.empty()) return release(id);
    if (nodes.at(id).needed()) return;
    const auto names = nodes.at(id).names;
    for (const auto& [dir, name] : names) {
      if (!nodes.at(dir).collapsed) continue;
      forget(dir, name);
      collapse_empty(dir);
    }
  }
  void unlink(NodeId dir, std::string name) {  // a copy: the caller's goes with it
    const auto found = nodes.at(dir).entries.find(name);
    if (found == nodes.at(dir).entries.end()) return;
    const auto id = found->second;
    unname(dir, name);
    settle(id);
  }
  void put(NodeId dir, const std::string& name, NodeId id, std::uint64_t place = 0) {
    const auto found = nodes.at(dir).entries.find(name);
    const auto was = found == nodes.at(dir).entries.end() ? kNone : found->second;
    if (was != kNone) {
      place = places.at({dir, name});
      unname(dir, name);
    }
    nodes.at(dir).entries[name] = id;
    nodes.at(id).names.insert({dir, name});
    places[{dir, name}] = place != 0 ? place : next_place++;
    if (was != kNone) settle(was);
  }
  // The node that stops being found by its identity, when there is one: the caller may have it pinned.
  bool link(NodeId dir, const std::string& name, const Attr& attr, const std::string& target, bool* retired) {
    const auto id = id_of(attr);
    if (nodes.contains(id) && S_ISDIR(nodes.at(id).attr.mode) && (id == kRootId || within(dir, id)))
      return false;
    if (nodes.contains(id) && !same_type(nodes.at(id).attr, attr)) {
      *retired = nodes.at(id).pins > 0;
      nodes.at(id).pins = 0;
      if (nodes.at(id).names.empty()) {
        nodes.erase(id);
      } else {
        while (nodes.contains(id))
          unlink(nodes.at(id).names.begin()->first, nodes.at(id).names.begin()->second);
      }
    }
    const bool is_new = !nodes.contains(id);
    auto& node = nodes[id];
    node.attr = attr;
    if (S_ISLNK(attr.mode) && (is_new || !target.empty())) node.target = target;
    const auto& entries = nodes.at(dir).entries;
    if (const auto found = entries.find(name); found != entries.end() && found->second == id) return true;
    if (S_ISDIR(attr.mode)) {
      if (!node.names.empty()) {
        const auto old = *node.names.begin();
        unname(old.first, old.second);
      } else {
        node.listing = Listing::kUnknown;
        node.doubted = false;
      }
    }
    put(dir, name, id);
    return true;
  }
  void rename(NodeId dir, const std::string& name, NodeId dir2, const std::string& name2, bool exchange) {
    const auto get = [&](NodeId d, const std::string& n) {
      const auto found = nodes.at(d).entries.find(n);
      return found == nodes.at(d).entries.end() ? kNone : found->second;
    };
    const auto a = get(dir, name), b = get(dir2, name2);
    if (a == kNone || a == b || (exchange && b == kNone)) return;
    if (S_ISDIR(nodes.at(a).attr.mode) && within(dir2, a)) return;
    if (exchange && S_ISDIR(nodes.at(b).attr.mode) && within(dir, b)) return;
    const auto place = places.at({dir, name}), place2 = exchange ? places.at({dir2, name2}) : 0;
    unname(dir, name);
    if (exchange) {
      unname(dir2, name2);
      put(dir, name, b, place);
    }
    put(dir2, name2, a, place2);
  }
};

// A kernel that believes what it was told until a change says otherwise.
class Believer {
 public:
  void learn(const Mirror& m, NodeIndex node, std::mt19937_64& rng) {
    attrs_[node] = m.attr(node);
    targets_[node] = m.target(node);
    if (!S_ISDIR(m.attr(node).mode) || m.collapsed(node)) return;  // not shown before it is listed
    auto& listing = listings_[node];
    listing.clear();
    m.list(node, 0, [&](std::uint64_t, std::string_view name, NodeIndex to) {
      listing[std::string(name)] = to;
      if (rng() % 2 == 0) entries_[{node, std::string(name)}] = to;
      return true;
    });
    for (char c = 'a'; c < 'i'; ++c) entries_[{node, std::string(1, c)}] = m.lookup(node, std::string(1, c));
  }
  void hear(const Changes& changes) {
    for (const auto& c : changes) {
      switch (c.kind) {
        case Change::Kind::kEntry:
          entries_.erase({c.dir, c.name});
          break;
        case Change::Kind::kListing:
          listings_.erase(c.dir);
          break;
        case Change::Kind::kData:
          targets_.erase(c.node);
          [[fallthrough]];
        case Change::Kind::kAttr:
          attrs_.erase(c.node);
          break;
        case Change::Kind::kNegatives:
          std::erase_if(entries_,
                        [&](const auto& e) { return e.first.first == c.dir && e.second == kNoNode; });
          break;
        case Change::Kind::kUnneeded:
          break;
        case Change::Kind::kAll:
          entries_.clear(), attrs_.clear(), targets_.clear(), listings_.clear();
          break;
        case Change::Kind::kGone:
          entries_.erase({c.dir, c.name});
          attrs_.erase(c.node), targets_.erase(c.node), listings_.erase(c.node);
          std::erase_if(entries_, [&](const auto& e) { return e.first.first == c.node; });
          break;
      }
    }
  }
  // A kernel knows what it holds alone, and absences in directories that it holds.
  void forget_all_but(const std::set<NodeIndex>& held) {
    const auto lost = [&](NodeIndex node) { return !held.contains(node); };
    std::erase_if(entries_, [&](const auto& e) {
      return lost(e.first.first) || (e.second != kNoNode && lost(e.second));
    });
    std::erase_if(attrs_, [&](const auto& e) { return lost(e.first); });
    std::erase_if(targets_, [&](const auto& e) { return lost(e.first); });
    std::erase_if(listings_, [&](const auto& e) { return lost(e.first); });
  }
  void check(const Mirror& m) const {
    for (const auto& [key, node] : entries_) EXPECT_EQ(m.lookup(key.first, key.second), node) << key.second;
    for (const auto& [node, attr] : attrs_) EXPECT_EQ(m.attr(node), attr);
    for (const auto& [node, target] : targets_) EXPECT_EQ(m.target(node), target);
    for (const auto& [node, listing] : listings_) {
      std::map<std::string, NodeIndex> now;
      m.list(node, 0, [&](std::uint64_t, std::string_view name, NodeIndex to) {
        now[std::string(name)] = to;
        return true;
      });
      EXPECT_EQ(now, listing);
    }
  }

 private:
  std::map<std::pair<NodeIndex, std::string>, NodeIndex> entries_;
  std::map<NodeIndex, Attr> attrs_;
  std::map<NodeIndex, std::string> targets_;
  std::map<NodeIndex, std::map<std::string, NodeIndex>> listings_;
};

class Both {
 public:
  explicit Both(std::uint64_t with) : rng_(with) {
    Changes changes;
    mirror_.set_root(model_.nodes.at(kRootId).attr, changes);
  }

  void step() {
    Changes changes;
    switch (rng_() % 14) {
      case 0:
      case 1:
      case 2:
      case 3:
        link(changes);
        break;
      case 4:
      case 5:
        unlink(changes);
        break;
      case 6:
      case 7:
        rename(changes);
        break;
      case 8:
        set_attr(changes);
        break;
      case 9:
        pin_or_unpin();
        mirror_.take_late(changes);
        break;
      case 10:
        collapse(changes);
        break;
      case 11:
        distrust(changes);
        break;
      default:
        block(changes);
    }
    believer_.hear(changes);
    ASSERT_EQ(mirror_.node_count(), model_.nodes.size() + zombies_.size());
    learn();
  }

  void check() {
    believer_.check(mirror_);
    std::size_t names = 0;
    for (const auto& [id, node] : model_.nodes) {
      const auto at = mirror_.find(id);
      ASSERT_NE(at, kNoNode);
      EXPECT_EQ(mirror_.alive(at), model_.alive(id));
      EXPECT_EQ(mirror_.attr(at), node.attr);
      EXPECT_EQ(mirror_.target(at), node.target);
      std::set<std::pair<NodeId, std::string>> held;
      mirror_.names(at, [&](NodeIndex dir, std::string_view name) {
        held.insert({id_of(mirror_.attr(dir)), std::string(name)});
      });
      EXPECT_EQ(held, node.names);
      names += held.size();
      const auto path = mirror_.path(at);
      ASSERT_EQ(path.has_value(), model_.alive(id));
      if (path) {
        EXPECT_EQ(mirror_.walk(Mirror::kRoot, *path), at);
      }
      if (!S_ISDIR(node.attr.mode)) {
        EXPECT_EQ(mirror_.proven(at), model_.proven(id));
        continue;
      }
      EXPECT_EQ(mirror_.listing(at), node.listing);
      EXPECT_EQ(mirror_.doubted(at), node.doubted);
      EXPECT_EQ(mirror_.collapsed(at), node.collapsed);
      check_entries(at, node);
    }
    EXPECT_EQ(mirror_.name_count(), names);
    EXPECT_LE(mirror_.expanded_names(), names);
    EXPECT_EQ(mirror_.pinned_count(), held().size());
    for (const auto zombie : zombies_) EXPECT_FALSE(mirror_.alive(zombie));
  }

 private:
  void check_entries(NodeIndex at, const Model::Node& node) {
    std::map<std::string, NodeId> entries;
    std::uint64_t last = 2;
    mirror_.list(at, 0, [&](std::uint64_t cookie, std::string_view name, NodeIndex to) {
      EXPECT_GT(cookie, last);
      last = cookie;
      EXPECT_EQ(mirror_.lookup(at, name), to);
      if (S_ISDIR(mirror_.attr(to).mode)) {
        EXPECT_EQ(mirror_.parent(to), at);
      }
      EXPECT_TRUE(entries.emplace(std::string(name), id_of(mirror_.attr(to))).second);
      return true;
    });
    EXPECT_EQ(entries, node.entries);
  }
  std::string name() {  // few, so that they meet; some long
    const auto c = static_cast<char>('a' + rng_() % 8);
    return rng_() % 8 == 0 ? std::string(1 + rng_() % 255, c) : std::string(1, c);
  }
  NodeId dir() {
    std::vector<NodeId> all;
    for (const auto& [id, node] : model_.nodes) {
      if (S_ISDIR(node.attr.mode) && model_.alive(id)) all.push_back(id);
    }
    return all[rng_() % all.size()];
  }
  Attr attr() {
    static constexpr std::uint32_t kTypes[] = {S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR};
    Attr a;
    a.dev = 1 + rng_() % 2;
    a.ino = 3 + rng_() % 60;
    // The type follows from the number, mostly: numbers are reused with another type sometimes.
    a.mode = kTypes[rng_() % 20 == 0 ? rng_() % 4
                    : a.ino % 5 < 2  ? 1
                                     : a.ino % 4] |
             (rng_() % 2 == 0 ? 0644 : 0600);
    a.size = rng_() % 3, a.mtime_ns = static_cast<std::int64_t>(rng_() % 2), a.version = rng_() % 2;
    a.ctime_ns = static_cast<std::int64_t>(rng_() % 3), a.nlink = 1 + rng_() % 2;
    if (S_ISCHR(a.mode)) a.rdev = rng_() % 3;
    return a;
  }
  std::string target(const Attr& a) { return S_ISLNK(a.mode) ? std::string(1 + rng_() % 30, 't') : ""; }
  NodeIndex at(NodeId id) { return mirror_.find(id); }

  bool model_link(NodeId in, const wire::TreeEntry& e) {
    bool retired = false;
    const auto was = at(id_of(e.attr));
    const bool linked = model_.link(in, e.name, e.attr, e.target, &retired);
    if (retired) {
      zombies_.push_back(was);
      for (auto& [node, id] : pinned_) {
        if (node == was) id = kNone;
      }
    }
    return linked;
  }
  wire::TreeEntry entry() {
    wire::TreeEntry e{name(), attr(), {}};
    e.target = target(e.attr);
    return e;
  }
  void link(Changes& changes) {
    const auto in = dir();
    const auto e = entry();
    const auto in_node = at(in);
    const bool linked = model_link(in, e);
    const auto node = mirror_.link(in_node, e.name, e.attr, e.target, changes);
    ASSERT_EQ(node != kNoNode, linked);
    if (linked) {
      EXPECT_EQ(id_of(mirror_.attr(node)), id_of(e.attr));
    }
  }
  void unlink(Changes& changes) {
    const auto in = dir();
    const auto n = name();
    mirror_.unlink(at(in), n, changes);
    model_.unlink(in, n);
  }
  void rename(Changes& changes) {
    const auto from = dir(), to = dir();
    const auto n = name(), n2 = name();
    const bool exchange = rng_() % 3 == 0;
    mirror_.rename(at(from), n, at(to), n2, exchange, changes);
    model_.rename(from, n, to, n2, exchange);
  }
  void set_attr(Changes& changes) {
    const auto a = attr();
    const auto id = id_of(a);
    if (!model_.nodes.contains(id)) return;
    auto& node = model_.nodes.at(id);
    const auto was = node.attr;
    mirror_.set_attr(at(id), a, changes);
    if (!same_type(was, a)) {
      EXPECT_TRUE(changes.empty());
      return;
    }
    node.attr = a;
    const bool data =
        !S_ISDIR(a.mode) && (was.size != a.size || was.mtime_ns != a.mtime_ns || was.version != a.version ||
                             (a.version == 0 && was.ctime_ns != a.ctime_ns));
    ASSERT_EQ(changes.size(), was == a ? 0u : 1u);
    if (was == a) return;
    EXPECT_EQ(changes[0].kind, data ? Change::Kind::kData : Change::Kind::kAttr);
  }
  void pin_or_unpin() {
    if (pinned_.size() > 10 || (!pinned_.empty() && rng_() % 2 == 0)) {
      const auto i = rng_() % pinned_.size();
      const auto [node, id] = pinned_[i];
      pinned_.erase(pinned_.begin() + static_cast<std::ptrdiff_t>(i));
      mirror_.unpin(node);
      if (id == kNone) {
        const bool last =
            std::none_of(pinned_.begin(), pinned_.end(), [n = node](auto& p) { return p.first == n; });
        if (last) std::erase(zombies_, node);
      } else {
        believer_.forget_all_but(held());
        model_.unpin(id);
      }
      return;
    }
    auto found = model_.nodes.begin();
    std::advance(found, static_cast<std::ptrdiff_t>(rng_() % model_.nodes.size()));
    mirror_.pin(at(found->first));
    ++found->second.pins;
    pinned_.emplace_back(at(found->first), found->first);
  }
  std::set<NodeIndex> held() const {
    std::set<NodeIndex> held;
    for (const auto& [node, id] : pinned_) held.insert(node);
    return held;
  }
  void collapse(Changes& changes) {
    const auto in = dir();
    const auto in_node = at(in);
    const bool listed = std::any_of(unfinished_.begin(), unfinished_.end(),
                                    [&](auto& u) { return u.first.second == in_node; });
    believer_.forget_all_but(held());
    ASSERT_EQ(mirror_.collapse(in_node, changes), !listed);
    if (!listed) model_.collapse(in);
  }
  void distrust(Changes& changes) {
    const auto in = dir();
    const bool recursive = rng_() % 2 == 0;
    mirror_.distrust(at(in), recursive, rng_() % 2 == 0, changes);
    model_.distrust(in, recursive);
  }
  void block(Changes& changes) {
    const auto in = dir();
    const auto in_node = at(in);
    const auto scan = rng_() % 3;
    wire::TreeBlock b;
    b.path = *mirror_.path(in_node);
    b.attr = model_.nodes.at(in).attr;
    b.attr.nlink = 1 + static_cast<std::uint32_t>(rng_() % 4);
    const auto kind = rng_() % 10;
    if (kind == 0) b.flags = wire::kTreeFailed, b.error = EACCES;
    if (kind == 1) b.flags = wire::kTreePseudo;
    if (kind == 2) b.flags = wire::kTreeNotExpanded;
    if (kind == 3) b.attr.ino += 1000;  // another directory meanwhile: dropped
    if (kind == 4) b.flags = wire::kTreeMore;
    if (kind == 5) {
      mirror_.end_scan(scan);
      std::erase_if(unfinished_, [&](const auto& u) { return u.first.first == scan; });
    }
    if (kind > 2) {
      for (auto n = rng_() % 6; n > 0; --n) b.entries.push_back(entry());
    }
    model_block(in, b, {scan, in_node});
    mirror_.apply_block(Mirror::kRoot, b, changes, {}, scan);
  }
  void model_block(NodeId in, const wire::TreeBlock& b, std::pair<std::uint64_t, NodeIndex> key) {
    if (id_of(b.attr) != in) return;
    auto& node = model_.nodes.at(in);
    node.attr = b.attr;
    if ((b.flags & wire::kTreeNotExpanded) != 0) return;
    if ((b.flags & wire::kTreeFailed) != 0) {
      node.listing = Listing::kFailed;
      node.doubted = false;
      unfinished_.erase(key);
      return;
    }
    auto seen = unfinished_[key];
    for (const auto& e : b.entries) {
      model_link(in, e);
      if (node.entries.contains(e.name)) seen.insert(model_.places.at({in, e.name}));
    }
    if ((b.flags & wire::kTreeMore) != 0) {
      unfinished_[key] = seen;
      if (node.listing != Listing::kComplete && node.listing != Listing::kStale)
        node.listing = Listing::kPartial, node.collapsed = false;
      return;
    }
    unfinished_.erase(key);
    node.listing = Listing::kComplete;
    node.collapsed = node.doubted = false;
    std::vector<std::string> gone;
    for (const auto& [n, id] : node.entries) {
      if (!seen.contains(model_.places.at({in, n}))) gone.push_back(n);
    }
    for (const auto& n : gone) model_.unlink(in, n);
  }
  void learn() {
    const auto in = at(dir());
    believer_.learn(mirror_, in, rng_);
  }

  std::mt19937_64 rng_;
  Mirror mirror_;
  Model model_;
  Believer believer_;
  std::vector<std::pair<NodeIndex, NodeId>> pinned_;
  std::vector<NodeIndex> zombies_;  // pinned, and their identity was given to another
  std::map<std::pair<std::uint64_t, NodeIndex>, std::set<std::uint64_t>> unfinished_;
};

TEST(MirrorModel, RandomChangesMatchThePlainModel) {
  SCOPED_TRACE("seed " + std::to_string(seed()));
  for (std::uint64_t round = 0; round < 8; ++round) {
    Both run(seed() + round);
    for (int i = 0; i < 4000; ++i) {
      ASSERT_NO_FATAL_FAILURE(run.step()) << "round " << round << " step " << i;
      if (i % 10 == 0) run.check();
      ASSERT_FALSE(::testing::Test::HasFailure()) << "round " << round << " step " << i;
    }
  }
}

}  // namespace
}  // namespace nearbox::sync
