// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sync/core/compact.h"
#include "sync/core/entry_list.h"
#include "sync/core/mirror.h"

// What Mirror is made of; internal to sync/core.
namespace nearbox::sync::compact {

inline constexpr std::uint32_t kNoDevice = 0;
inline constexpr std::size_t kMaxDevices = 65535;  // file systems with nodes here at one time

struct Node {
  std::uint64_t ino = 0;
  std::uint64_t size = 0;
  std::uint64_t blocks = 0;
  std::uint64_t version = 0;
  std::uint64_t pins = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
  std::uint32_t mode = 0;
  std::uint32_t nlink = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t birth = 0;
  std::uint16_t device = kNoDevice;  // index into Devices
  bool used = false;
  bool indexed = false;    // found by its identity
  DentryIndex names = 0;   // first of its names, chained by Dentry::next_name
  std::uint32_t next = 0;  // of the identity index
  std::uint32_t more = 0;  // directory: in dirs; symlink: target, device file: number, in strings
};
static_assert(sizeof(Node) == 96);

struct Dir {
  EntryList entries;
  std::int32_t error = 0;
  Listing listing = Listing::kUnknown;
  bool in_line : 1 = false;       // of those that may collapse: Impl::line
  bool collapsed : 1 = false;     // names whose nodes lose their last pin go
  bool in_doubt : 1 = false;      // kUnknown or kPartial, and what it holds is of before it was kStale
  mutable std::uint8_t used = 0;  // looked at since it came to its place in the line; set by readers
  std::uint32_t before = 0;       // node of the neighbour in the line that came to it earlier …
  std::uint32_t after = 0;        // … and later
};

// The cookies of names that went with a collapse, for readers of the directory who stand among them.
struct Places {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> cookies;  // by hash of the name; 0: given again
  bool sorted = true;
  std::list<NodeIndex>::iterator in_order{};
};

// Device numbers by a small index, counted, so that none stays after its last node.
class Devices {
 public:
  std::uint16_t take(std::uint64_t device) {
    if (const auto found = by_number_.find(device); found != by_number_.end()) {
      ++all_[found->second].nodes;
      return found->second;
    }
    auto at = std::find_if(all_.begin() + 1, all_.end(), [](const One& one) { return one.nodes == 0; });
    if (at == all_.end()) at = all_.insert(all_.end(), One{});
    *at = One{device, 1};
    const auto index = static_cast<std::uint16_t>(at - all_.begin());
    by_number_.emplace(device, index);
    return index;
  }
  void give(std::uint16_t index) {
    if (index == kNoDevice || --all_[index].nodes > 0) return;
    by_number_.erase(all_[index].number);
  }
  std::uint64_t number(std::uint16_t index) const { return all_[index].number; }
  bool full() const { return by_number_.size() >= kMaxDevices - 1; }
  std::size_t memory_bytes() const { return all_.capacity() * sizeof(One) + by_number_.size() * 48; }

 private:
  struct One {
    std::uint64_t number = 0;
    std::uint64_t nodes = 0;
  };
  std::vector<One> all_{One{}};
  std::unordered_map<std::uint64_t, std::uint16_t> by_number_;
};

inline wire::Attr normal(wire::Attr attr) {
  if (!S_ISCHR(attr.mode) && !S_ISBLK(attr.mode)) attr.rdev = 0;
  return attr;
}

inline bool same_type(std::uint32_t a, std::uint32_t b) { return (a & S_IFMT) == (b & S_IFMT); }

}  // namespace nearbox::sync::compact

namespace nearbox::sync {

struct Mirror::Impl {
  using Dentry = compact::Dentry;
  using DentryIndex = compact::DentryIndex;
  using Node = compact::Node;
  using Dir = compact::Dir;

  compact::Pool<Node, 4096> nodes;
  compact::Pool<Dentry, 8192> dentries;
  compact::Pool<Dir, 1024> dirs;
  compact::Arena strings;
  compact::Devices devices;
  const std::uint64_t key = random_key();  // of the hashes
  std::uint64_t next_cookie = 3;
  NodeIndex quiet_dir = kNoNode;  // its kListing is told once, by apply_block()
  bool quiet_dir_changed = false;
  std::function<void(const wire::NodeId&)> emptied;

  struct {
    NodeIndex oldest = kNoNode, newest = kNoNode;
    std::size_t dirs = 0, names = 0;
  } line;  // directories with names, the least recently expanded first
  struct {
    NodeIndex in = kNoNode;
    std::uint64_t after = 0;  // the cookie of the last that was looked at
  } dropping;                 // the collapsed directory whose names are going
  std::size_t pinned = 0;     // nodes with pins
  Changes late;               // made by methods that tell none; told with the next
  std::unordered_map<NodeIndex, compact::Places> places;
  std::list<NodeIndex> places_order;  // of `places`, oldest first
  std::size_t places_count = 0;
  static constexpr std::size_t kMaxPlaces = 512 * 1024;  // 16 bytes each

  struct ById {
    Impl& impl;
    std::uint32_t& next(std::uint32_t i) const { return impl.nodes[i].next; }
    std::uint32_t hash(std::uint32_t i) const {
      return impl.hash_id(impl.nodes[i].device, impl.nodes[i].ino);
    }
  } by_id_store{*this};
  struct ByName {
    Impl& impl;
    std::uint32_t& next(std::uint32_t i) const { return impl.dentries[i].next; }
    std::uint32_t hash(std::uint32_t i) const { return impl.dentries[i].hash; }
  } by_name_store{*this};
  compact::Index<ById> by_id{by_id_store};
  compact::Index<ByName> by_name{by_name_store};
  // Cookies seen so far of directories that come in several blocks, by stream and directory.
  std::map<std::pair<std::uint64_t, NodeIndex>, std::vector<std::uint64_t>> unfinished;

  static std::uint64_t random_key();

  // ---- reading
  std::uint32_t hash_id(std::uint16_t device, std::uint64_t ino) const {
    return static_cast<std::uint32_t>(compact::mix(ino ^ key ^ (devices.number(device) << 40)));
  }
  bool used(NodeIndex node) const { return nodes.holds(node) && nodes[node].used; }
  bool is_dir(NodeIndex node) const { return used(node) && S_ISDIR(nodes[node].mode); }
  bool alive(NodeIndex node) const { return used(node) && (node == kRoot || nodes[node].names != 0); }
  Dir& dir(NodeIndex node) { return dirs[nodes[node].more]; }
  const Dir& dir(NodeIndex node) const { return dirs[nodes[node].more]; }
  std::string_view name_of(DentryIndex d) const {
    const auto* at = strings.at(dentries[d].name);
    return {at + 1, static_cast<unsigned char>(*at)};
  }
  NodeIndex parent(NodeIndex node) const {
    return node == kRoot || nodes[node].names == 0 ? kRoot : dentries[nodes[node].names].dir;
  }
  bool within(NodeIndex node, NodeIndex ancestor) const {
    while (node != ancestor && node != kRoot) node = parent(node);
    return node == ancestor;
  }
  NodeIndex find(std::uint64_t device, std::uint64_t ino) const {
    const auto hash = static_cast<std::uint32_t>(compact::mix(ino ^ key ^ (device << 40)));
    return by_id.find(
        hash, [&](NodeIndex i) { return nodes[i].ino == ino && devices.number(nodes[i].device) == device; });
  }
  DentryIndex find_name(NodeIndex in, std::string_view name) const {
    const auto hash = compact::hash_name(key, in, name);
    return by_name.find(hash, [&](DentryIndex d) {
      return dentries[d].hash == hash && dentries[d].dir == in && name_of(d) == name;
    });
  }
  NodeIndex find(std::uint64_t device, std::uint64_t ino, std::uint32_t birth) const {
    const auto node = find(device, ino);
    return node != kNoNode && wire::same_birth(nodes[node].birth, birth) ? node : kNoNode;
  }
  bool is(NodeIndex node, const wire::Attr& attr) const {
    const auto& n = nodes[node];
    return n.ino == attr.ino && devices.number(n.device) == attr.dev && wire::same_birth(n.birth, attr.birth);
  }
  wire::Attr attr(NodeIndex node) const;
  std::string_view target(NodeIndex node) const;

  // ---- nodes
  NodeIndex make(const wire::Attr& attr, std::string_view target);
  void store(NodeIndex node, const wire::Attr& attr);
  void set_target(NodeIndex node, std::string_view target);
  void update(NodeIndex node, const wire::Attr& attr, std::string_view target, Changes& changes);
  void release(NodeIndex node);  // frees a nameless node without pins

  // ---- names: the small steps; those who call them keep the whole right
  DentryIndex bind(NodeIndex in, std::string_view name, NodeIndex node);
  void chain(DentryIndex d, NodeIndex node);
  void unchain(DentryIndex d);
  void discard(DentryIndex d);  // everything but its directory's list
  void unbind(DentryIndex d, Changes& changes);
  void repoint(DentryIndex d, NodeIndex node, Changes& changes);
  void orphan(NodeIndex node, NodeIndex in, const std::string& name, Changes& changes);
  void clear_tree(NodeIndex top, Changes& changes);
  void drop(DentryIndex d, Changes& changes);
  void retire(NodeIndex node, Changes& changes);
  void supersede(NodeIndex node, Changes& changes);

  // ---- collapsing (mirror_collapse.cpp)
  void mark_used(NodeIndex in) const;
  void join_line(NodeIndex in);  // as its newest
  void leave_line(NodeIndex in);
  void now_expanded(NodeIndex in);
  void remove_entry(DentryIndex d);  // from its directory's list
  std::uint64_t place_of(NodeIndex in, std::string_view name);
  void remember_place(NodeIndex in, DentryIndex d);
  void forget_places(NodeIndex in);
  bool being_listed(NodeIndex in) const;
  bool needed(NodeIndex node) const;
  void begin_collapse(NodeIndex in, Changes& changes);
  std::size_t drop_names(std::size_t most, Changes& changes);
  void stop_dropping(NodeIndex in);
  bool keeps(NodeIndex in, DentryIndex d, Changes& changes);
  void forget_name(DentryIndex d);
  void unneeded(NodeIndex node);
  void collapse_empty(NodeIndex in);

  // ---- the whole steps
  NodeIndex link(NodeIndex in, std::string_view name, const wire::Attr& attr, std::string_view target,
                 Changes& changes);
  void rename(DentryIndex from, NodeIndex to_dir, std::string_view to_name, Changes& changes);
  void exchange(DentryIndex one, DentryIndex two, Changes& changes);
  std::uint64_t apply_entry(NodeIndex in, const wire::TreeEntry& entry, bool frozen, const Newer* newer,
                            Changes& changes);
  void remove_unseen(NodeIndex in, std::vector<std::uint64_t>& seen, const Newer* newer, Changes& changes);
  NodeIndex block_dir(NodeIndex at_path, const wire::Attr& given, bool anywhere) const;
  void distrust(NodeIndex top, bool recursive, bool content, Changes& changes);
  static constexpr std::size_t kMaxDistrustTold = 4096;  // more changes become one of everything

  void tell_entry(NodeIndex in, std::string_view name, NodeIndex node, Changes& changes,
                  bool absent = false) {
    changes.push_back({Change::Kind::kEntry, node, in, std::string(name), absent});
  }
  void tell_listing(NodeIndex in, Changes& changes) {
    if (in == quiet_dir) {
      quiet_dir_changed = true;
    } else if (changes.empty() || changes.back().kind != Change::Kind::kListing || changes.back().dir != in) {
      changes.push_back({Change::Kind::kListing, kNoNode, in, {}});
    }
  }
};

}  // namespace nearbox::sync
