// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/looker.h"

#include <array>
#include <cerrno>
#include <deque>
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include "tools/agent/fs_path.h"

namespace nearbox::agent {
namespace {

using Item = Coalescer::Item;
using Clock = std::chrono::steady_clock;

struct CloseDir {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

std::string below(const std::string& directory, const std::string& name) {
  if (directory.empty()) return name;
  return directory.back() == '/' ? directory + name : directory + "/" + name;
}

// A name that vanished before its target could be read is gone.
bool read_target(int dir, const std::string& name, std::string& target) {
  std::array<char, wire::kMaxPath> buffer{};
  const ssize_t n = ::readlinkat(dir, name.c_str(), buffer.data(), buffer.size());
  if (n < 0) return false;
  target.assign(buffer.data(), static_cast<std::size_t>(n));
  return true;
}

}  // namespace

std::string path_of(int fd) {
  std::array<char, wire::kMaxPath> buffer{};
  const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), buffer.data(), buffer.size());
  if (n <= 0 || static_cast<std::size_t>(n) >= buffer.size() || buffer[0] != '/') return {};
  return {buffer.data(), static_cast<std::size_t>(n)};
}

bool Looker::untouched(Place& dir, const std::string& name) const {
  if ((!mounts_.any_own() && !mounts_.any_foreign()) || name.empty()) return false;
  if (!dir.path) dir.path = path_of(dir.fd);
  const auto path = below(*dir.path, name);
  return mounts_.own_mount(path) || mounts_.foreign(path);
}

void Looker::look(TreeView& source, std::vector<Item>::iterator from, std::vector<Item>::iterator to,
                  const RootSet& every_root, Findings& out) {
  if (from->dir == wire::NodeId{}) {
    for (auto it = from; it != to; ++it) {
      it->targets.push_back(std::move(it->name));
      resolve_targets(source, *it, Here{}, every_root, out);
    }
    return;
  }
  for (auto it = from; it != to; ++it) source.recall(it->dir, it->place);
  const auto roots = source.roots_of(from->dir);
  const auto fd = roots.none() ? base::UniqueFd() : source.open_dir(from->dir);
  Place place{fd.get()};
  for (auto it = from; it != to; ++it) {
    if (fd) {
      look_at(source, place, *it, roots, out);
    } else {  // the directory is gone or elsewhere, but a file that was in it may have other names
      resolve_targets(source, *it, Here{}, every_root, out);
    }
  }
}

// Bytes that changed belong to nodes, not names: each target gets its version, and one that is not
// what the name shows is told by itself.
void Looker::resolve_targets(TreeView& source, const Item& item, Here here, const RootSet& roots,
                             Findings& out) {
  const bool written = (item.flags & (kHintContent | kHintBorn)) != 0;
  for (const auto& target : item.targets) {
    const bool links = (item.flags & kHintLinks) != 0;
    const bool content = written || (links && passed_over_.erase(target) != 0);
    if (source.names(target, here.node)) {
      if (content) versions_.bump(here.node, here.number);
      continue;
    }
    auto st = source.target(target);
    if (!st) continue;
    const auto node = node_of(*st);
    if (node == here.node) {
      if (content) versions_.bump(node, here.number);
      continue;
    }
    // By a name outside of the roots: only another name can lie below one, which it may have lost since.
    const bool nowhere = here.node == wire::NodeId{} && item.dir == wire::NodeId{};
    if (nowhere && content && st->st_nlink < 2 && !links) {
      if (passed_over_.size() >= kMaxPassedOver) passed_over_.clear();
      passed_over_.insert(
          target);  // the kernel tells of a lost name by itself, maybe later than of the bytes
      continue;
    }
    if (content) versions_.bump(node);
    const auto as_of = versions_.now();
    if (content) st = source.target(target);  // attributes of before the version would be told as newer
    if (!st) continue;
    if (st->st_nlink == 0 || S_ISDIR(st->st_mode)) continue;
    wire::NameState state;
    state.dir = node;
    state.attr = make_attr(*st, as_of);
    out.there.push_back({std::move(state), roots});
  }
}

void Looker::look_at(TreeView& source, Place& place, const Item& item, const RootSet& roots, Findings& out) {
  if (untouched(place, item.name)) return;
  const int fd = place.fd;
  wire::NameState state;
  state.dir = item.dir;
  state.name = item.name;
  // "." rather than the descriptor itself: a directory that may not be searched is hidden too.
  const char* const name = item.name.empty() ? "." : item.name.c_str();
  // What is counted for events of before is counted by a number of before the look.
  const bool counts = (item.flags & (kHintContent | kHintBorn | kHintLinks)) != 0;
  const auto as_of = counts ? versions_.unique() : versions_.now();
  const auto looked = stat_at(fd, name);
  const Stat st = looked ? *looked : Stat{};
  bool there = looked.ok();
  const bool named = (item.flags & (kHintListing | kHintBorn | kHintFresh)) != 0;
  // Not gone: the directory's mode keeps this agent out.
  const bool hidden = !there && looked.error().as_errno() == EACCES;
  if (there && S_ISLNK(st.st_mode)) there = read_target(fd, item.name, state.target);
  resolve_targets(source, item, {there ? node_of(st) : wire::NodeId{}, as_of}, roots, out);
  if (hidden) source.hidden();
  if (!there) {
    if ((item.flags & kHintFresh) != 0) {
      if (missed_.size() > kMaxMissed) missed_.clear();
      missed_.insert(item.targets.begin(), item.targets.end());
    }
    if (!item.name.empty() && !hidden) out.gone.push_back({std::move(state), roots, 0, 0, named});
    return;
  }
  const bool by_name = (item.flags & kHintContent) != 0 && item.targets.empty();
  if (by_name || (item.flags & kHintBorn) != 0) versions_.bump(node_of(st), as_of);
  state.attr = make_attr(st, as_of);
  const bool fresh = S_ISDIR(st.st_mode) && (item.flags & kHintFresh) != 0 && !item.name.empty();
  if (fresh && !listed_since_made(source, item, node_of(st))) {
    return list(source, fd, item, state.attr, roots, out);
  }
  out.there.push_back({std::move(state), roots, 0, 0, named});
}

// The event of its making came after a directory above it was listed, and it with that: whatever changed in
// it since has events of its own. By its handle, which no other directory ever has.
bool Looker::listed_since_made(TreeView& source, const Item& item, wire::NodeId dir) {
  if ((item.flags & kHintArrived) != 0 || item.targets.size() != 1) return false;
  const auto place = source.place_of(dir);
  return place && *place == item.targets.front() && listed_.erase(*place) != 0;
}

struct Looker::Listing {
  int top = -1;
  RootSet roots;
  bool for_all = true;
  std::deque<std::string> waiting;  // relative to top
  std::size_t names = 0;
  std::vector<Seen> seen;
};

void Looker::list(TreeView& source, int parent, const Item& item, const wire::Attr& attr,
                  const RootSet& roots, Findings& out) {
  Listing listing;
  listing.roots = roots;
  listing.for_all = out.for_all;
  wire::NameState head;
  head.dir = item.dir;
  head.name = item.name;
  head.flags = wire::kNameFresh;
  head.attr = attr;
  const base::UniqueFd top(
      ::openat(parent, item.name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  const auto st = stat_fd(top.get());
  if (!st || !wire::same_node(node_of(*st), wire::identity(attr))) {
    return;  // replaced since: an event says so
  }
  source.entered(top.get(), node_of(*st), item.dir, item.name);
  listing.top = top.get();
  listing.seen.push_back({std::move(head), roots});
  listing.waiting.emplace_back();
  bool complete = true;
  while (complete && !listing.waiting.empty()) {
    const auto path = std::move(listing.waiting.front());
    listing.waiting.pop_front();
    complete = list_one(source, listing, path);
  }
  ++listings_;
  for (auto& seen : listing.seen) {
    seen.listing = listings_;
    out.there.push_back(std::move(seen));
  }
  if (complete) return;
  const bool unwatched = (item.flags & kHintUnwatched) != 0;
  if (unwatched) versions_.bump_all();  // also of files that were not come to
  out.lost.push_back({path_of(top.get()), roots, unwatched});
}

void Looker::remember_listed(TreeView& source, wire::NodeId dir) {
  const auto place = source.place_of(dir);
  if (!place) return;
  if (listed_.size() >= kMaxListed) listed_.clear();
  listed_.insert(*place);
}

// False: too many names for one listing, or not all of them can be read.
bool Looker::list_one(TreeView& source, Listing& listing, const std::string& path) {
  auto fd = open_beneath(listing.top, path, O_RDONLY | O_DIRECTORY);
  const bool readable = fd.ok();
  if (!readable) fd = open_beneath(listing.top, path, O_PATH | O_DIRECTORY);
  if (!fd) return true;  // gone: an event says so
  const auto st = stat_fd(fd->get());
  if (!st) return true;
  const auto dir = node_of(*st);
  wire::NameState tail;
  tail.dir = dir;
  tail.flags = wire::kNameListed;
  tail.attr = make_attr(*st);
  if (readable && !pseudo(tail.attr)) {
    const int number = fd->get();
    Place place{number};
    const std::unique_ptr<DIR, CloseDir> handle(::fdopendir(number));
    if (!handle) return true;
    (void)fd->release();  // the handle closes it
    // What waits is done with when all whom it concerns are told of the listing.
    const bool takes = listing.for_all && (source.roots_of(dir) & ~listing.roots).none();
    while (true) {
      errno = 0;
      const struct dirent* const found = ::readdir(handle.get());
      if (found == nullptr) break;
      const std::string name = found->d_name;
      if (name == "." || name == ".." || untouched(place, name)) continue;
      if (++listing.names > kMaxFreshNames) return false;
      Item item{dir, name, 0, {}, {}};
      if (auto waiting = takes ? names_.take_name(dir, name, Clock::now()) : names_.waiting(dir, name)) {
        item = std::move(*waiting);
      }
      item.flags &= ~static_cast<std::uint32_t>(kHintFresh);
      item.flags |= kHintBorn;  // what became of it elsewhere, nobody told
      // A directory is told as fresh when its node is known: after the look.
      Findings found_here;
      look_at(source, place, item, listing.roots, found_here);
      for (auto& seen : found_here.there) {
        const bool listed = seen.state.name == name && S_ISDIR(seen.state.attr.mode);
        if (listed) {
          seen.state.flags = wire::kNameFresh;
          const base::UniqueFd sub(
              ::openat(number, name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
          // The watch is the descriptor's: another directory by now is told by an event.
          const auto now = stat_fd(sub.get());
          if (now && wire::same_node(node_of(*now), wire::identity(seen.state.attr))) {
            source.entered(sub.get(), node_of(*now), dir, name);
          }
          auto next = below(path, name);
          if (next.size() < wire::kMaxPath) listing.waiting.push_back(std::move(next));
        }
        listing.seen.push_back(std::move(seen));
      }
    }
    if (errno != 0 && errno != ENOENT) return false;  // ENOENT: it was removed
    remember_listed(source, dir);
  }
  listing.seen.push_back({std::move(tail), listing.roots});
  return true;
}

}  // namespace nearbox::agent
