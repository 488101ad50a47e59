// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <sys/random.h>
#include <sys/stat.h>

#include "client/base/fault.h"
#include "client/wire/paths.h"
#include "sync/engine/tree_store_impl.h"

// What the agent's watcher tells: brought into the mirror, and remembered for the walks that run.
namespace nearbox::sync {

using namespace std::chrono_literals;

namespace {

bool same_type(const wire::Attr& a, const wire::Attr& b) { return (a.mode & S_IFMT) == (b.mode & S_IFMT); }

// A change time that goes back: what was told beside an operation of ours may have been seen before what is
// known. Or somebody set the clock back. The directory is listed again to know.
bool seems_older(const wire::Attr& known, const wire::Attr& told) {
  return told.version == known.version && told.ctime_ns < known.ctime_ns;
}

// Two files of one number: what was told may be of the one that is gone, overtaken by the answer to an
// operation of ours. Or somebody set the clock back. Its directories are listed again to know.
bool born_earlier(const wire::Attr& known, const wire::Attr& told) { return told.ctime_ns < known.ctime_ns; }

std::uint64_t stir(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

std::uint64_t TreeStore::Impl::random_salt() {
  std::uint64_t salt = 0;
  while (salt == 0) {
    if (::getrandom(&salt, sizeof salt, 0) != sizeof salt) salt = 0;
  }
  return salt;
}

// ---- watching

// Has the agent watch the subtree at `path`; then() runs when it answered, whatever it said.
void TreeStore::Impl::watch(const std::string& path, Deadline deadline, Then then) {
  if (events == nullptr) {
    watch_over(path, 0, {}, {}, EOPNOTSUPP);
    return then();
  }
  const bool asked = with_root([this, path, deadline, then](std::uint32_t) {
    wire::RootOpen ask;
    std::uint64_t now = 0;
    {
      base::MutexLock lock(mu);
      now = generation;
      ask.path = root_canonical;
    }
    if (!path.empty()) ask.path += (ask.path.ends_with('/') ? "" : "/") + path;
    const auto again = [this, path, deadline, then] { watch(path, deadline, then); };
    unary(wire::Method::kRootOpen, wire::encode(ask), deadline, [=, this](int error, wire::ByteView payload) {
      const auto root = error == 0 ? wire::decode<wire::RootReply>(payload) : std::nullopt;
      if (error == ECONNRESET && Clock::now() < deadline) return later(kRetryPause, again);
      if (!root) {
        watch_over(path, now, {}, {}, error != 0 ? error : EPROTO);
        return then();
      }
      unary(wire::Method::kWatch, wire::encode(wire::Watch{root->root}), deadline,
            [=, this, root = *root](int failed, wire::ByteView answer) {
              if (failed == ECONNRESET && Clock::now() < deadline) return later(kRetryPause, again);
              const auto reply = failed == 0 ? wire::decode<wire::WatchReply>(answer) : std::nullopt;
              if (failed == 0 && !reply) failed = EPROTO;
              watch_over(path, now, root, reply.value_or(wire::WatchReply{}), failed);
              then();
            });
    });
  });
  if (asked) return;
  watch_over(path, 0, {}, {}, EAGAIN);
  then();
}

void TreeStore::Impl::watch_over(const std::string& path, std::uint64_t for_generation,
                                 const wire::RootReply& root, const wire::WatchReply& reply, int error) {
  const auto node = store.read(
      [&](const Mirror& mirror) { return wire::identity(mirror.attr(mirror.walk(Mirror::kRoot, path))); });
  auto kind = reply.kind == wire::WatchKind::kFanotify || reply.kind == wire::WatchKind::kInotify
                  ? reply.kind
                  : wire::WatchKind::kNone;
  if (error == 0 && kind == wire::WatchKind::kNone) error = reply.error > 0 ? reply.error : EOPNOTSUPP;
  if (error == 0 && !wire::same_node(node, wire::identity(root.attr)))
    error = ESTALE;  // another directory lies there by now
  if (error != 0) kind = wire::WatchKind::kNone;
  {
    base::MutexLock lock(mu);
    const auto found = subtrees.find(path);
    if (found == subtrees.end()) return;
    auto& subtree = found->second;
    subtree.watch = kind;
    subtree.watch_error = error;
    subtree.watch_asked = true;
    subtree.watch_generation = for_generation;
    subtree.watch_root = root.root;
    subtree.node = node;
  }
  ask_mounts(path);
  if (kind == wire::WatchKind::kNone) {
    log.warn("event=not_watched errno=" + std::to_string(error));
  } else {
    log.info(std::string("event=watching kind=") +
             (kind == wire::WatchKind::kFanotify ? "fanotify" : "inotify") +
             " directories=" + std::to_string(reply.directories));
  }
}

void TreeStore::Impl::ask_mounts(const std::string& path) {
  std::uint32_t root = 0;
  {
    base::MutexLock lock(mu);
    const auto found = subtrees.find(path);
    if (found == subtrees.end() || found->second.watch_root == 0 || found->second.asks_mounts) return;
    found->second.asks_mounts = true;
    root = found->second.watch_root;
  }
  unary(wire::Method::kMounts, wire::encode(wire::Mounts{root}), Clock::now() + kCallDeadline,
        [this, path](int error, wire::ByteView payload) {
          auto reply = error == 0 ? wire::decode<wire::MountsReply>(payload) : std::nullopt;
          base::MutexLock lock(mu);
          const auto found = subtrees.find(path);
          if (found == subtrees.end()) return;
          found->second.asks_mounts = false;
          if (reply) found->second.mounts = std::move(*reply);
        });
}

// ---- states

void TreeStore::Impl::apply_changed(const wire::Changed& changed) {
  const Use use(*this);
  if (!use) return;
  changed_states += changed.states.size();
  Rechecks again;
  const bool beside = watched_by_directory();
  store.write([&](Mirror& mirror, Changes& changes) {
    for (const auto& state : changed.states) {
      const auto dir = mirror.find(state.dir);
      const auto before = beside && !state.name.empty() ? mirror.lookup(dir, state.name) : kNoNode;
      if (state.name.empty()) {
        apply_node(state, mirror, changes, again);
      } else {
        apply_state(state, mirror, changes, again);
      }
      if (beside) look_beside(state, before, mirror, again);
    }
  });
  recheck(again);
  resolve_waiters();
}

bool TreeStore::Impl::watched_by_directory() {
  base::MutexLock lock(mu);
  return std::any_of(subtrees.begin(), subtrees.end(), [agent = generation](const auto& entry) {
    return entry.second.watched(agent) && entry.second.watch == wire::WatchKind::kInotify;
  });
}

// What inotify does not tell: the link count of a file that lost a name.
void TreeStore::Impl::look_beside(const wire::NameState& state, NodeIndex before, const Mirror& mirror,
                                  Rechecks& again) {
  if (before == kNoNode || !mirror.alive(before) || S_ISDIR(mirror.attr(before).mode)) return;
  if (mirror.lookup(mirror.find(state.dir), state.name) == before) return;
  auto other = kNoNode;
  mirror.names(before, [&](NodeIndex in, std::string_view) { other = in; });
  again.emplace_back(other, false);
}

// The directories of a node whose number another file has.
void TreeStore::Impl::look_at_names(NodeIndex node, const Mirror& mirror, Rechecks& again) {
  mirror.names(node, [&](NodeIndex in, std::string_view) { again.emplace_back(in, false); });
}

// The state of a node itself.
void TreeStore::Impl::apply_node(const wire::NameState& state, Mirror& mirror, Changes& changes,
                                 Rechecks& again) {
  told_name(state.dir, {});
  const bool gone = state.attr.ino == 0;
  const auto node = mirror.find(gone ? state.dir : wire::NodeId{state.dir.dev, state.dir.ino});
  if (node == kNoNode) {
    ++unknown_told;
    return;
  }
  if (gone) {
    std::vector<std::pair<NodeIndex, std::string>> names;
    mirror.names(node, [&](NodeIndex dir, std::string_view name) { names.emplace_back(dir, name); });
    for (const auto& [dir, name] : names) {
      told_name(wire::identity(mirror.attr(dir)), name);
      mirror.unlink(dir, name, changes);
    }
    return;
  }
  const auto was = mirror.attr(node);
  if (wire::identity(state.attr) != state.dir) return;
  if (!wire::same_node(was, state.attr)) {
    look_at_names(node, mirror, again);
    if (!born_earlier(was, state.attr)) mirror.supersede(node, changes);
    return;
  }
  if (!same_type(was, state.attr)) return;
  if (seems_older(was, state.attr)) {
    auto dir = node;
    if (!S_ISDIR(was.mode)) mirror.names(node, [&](NodeIndex in, std::string_view) { dir = in; });
    again.emplace_back(dir, false);
  } else {
    mirror.set_attr(node, state.attr, changes);
  }
  if ((state.flags & wire::kNameListed) != 0 && mirror.listing(node) == Listing::kPartial) {
    mirror.set_listing(node, Listing::kComplete);
  }
}

void TreeStore::Impl::apply_state(const wire::NameState& state, Mirror& mirror, Changes& changes,
                                  Rechecks& again) {
  const auto id = wire::identity(state.attr);
  told_name(state.dir, state.name);
  if (state.attr.ino != 0) told_name(id, {});
  const auto dir = mirror.find(state.dir);
  if (dir == kNoNode || !S_ISDIR(mirror.attr(dir).mode) || !mirror.alive(dir)) {
    ++unknown_told;
    told_listing(state.dir);  // should a walk bring it, it is listed again
    const bool file = state.attr.ino != 0 && !S_ISDIR(state.attr.mode);
    if (file && mirror.find(id) != kNoNode && !base::fault::active("sync.no_other_names")) {
      auto node = state;  // it has names that are known besides
      node.dir = id;
      node.name.clear();
      apply_node(node, mirror, changes, again);
    }
    return;
  }
  const auto there = mirror.lookup(dir, state.name);
  const auto known = state.attr.ino == 0 ? kNoNode : mirror.find(id);
  const auto other = known == kNoNode ? mirror.find({id.dev, id.ino}) : kNoNode;
  if (state.attr.ino != 0 && other != kNoNode) {
    look_at_names(other, mirror, again);
    if (born_earlier(mirror.attr(other), state.attr)) {
      again.emplace_back(dir, false);
      return;
    }
  }
  if (state.attr.ino == 0) {
    const auto before = changes.size();
    if (there != kNoNode) {
      mirror.unlink(dir, state.name, changes);
    } else if (mirror.collapsed(dir)) {
      changes.push_back(
          {Change::Kind::kEntry, kNoNode, dir, state.name});  // whoever was shown it still has it
    }
    if (mirror.collapsed(dir) && base::fault::active("sync.no_collapse_inval")) {
      changes.erase(changes.begin() + static_cast<std::ptrdiff_t>(before), changes.end());
    }
  } else {
    const bool was_alive = known != kNoNode && mirror.alive(known);
    const bool was_listed = was_alive && mirror.listing(known) == Listing::kComplete;
    const auto was = mirror.attr(known);
    const bool older = was_alive && same_type(was, state.attr) && seems_older(was, state.attr);
    if (older) again.emplace_back(dir, false);
    const auto node =
        mirror.link(dir, state.name, older ? was : state.attr, older ? std::string() : state.target, changes);
    if (node == kNoNode) {
      again.emplace_back(dir, false);  // two directories changed places, and half of it is told
    } else if (S_ISDIR(state.attr.mode) && (state.flags & wire::kNameFresh) != 0 && was_listed) {
      again.emplace_back(node, false);  // we made it; what is known of it is shown meanwhile
    } else if (S_ISDIR(state.attr.mode) && (state.flags & wire::kNameFresh) != 0) {
      told_listing(id);
      mirror.begin_listing(node, changes);
    } else if (S_ISDIR(state.attr.mode) && !was_alive && !by_directory) {
      again.emplace_back(node, true);
    }
  }
}

// ---- losses

void TreeStore::Impl::apply_lost(const wire::Lost& lost) {
  const Use use(*this);
  if (!use) return;
  ++lost_told;
  if (base::fault::active("sync.no_rescan")) return;
  log.info("event=changes_lost recursive=" + std::to_string(lost.recursive) +
           " content=" + std::to_string(lost.content));
  wire::NodeId root;
  {
    base::MutexLock lock(mu);
    for (const auto& [path, subtree] : subtrees) {
      if (subtree.watched(generation) && subtree.watch_root == lost.root) root = subtree.node;
    }
  }
  if (root == wire::NodeId{}) return;  // of one that is not walked yet
  Rechecks again;
  store.write([&](Mirror& mirror, Changes& changes) {
    auto top = mirror.find(lost.dir == wire::NodeId{} ? root : lost.dir);
    if (lost.dir != wire::NodeId{}) told_listing(lost.dir);  // should a walk bring it, it is listed again
    if (top == kNoNode || !mirror.alive(top) || !S_ISDIR(mirror.attr(top).mode)) return;
    bool recursive = lost.recursive;
    std::string_view left = lost.dir == wire::NodeId{} ? lost.path : std::string_view();
    while (!left.empty()) {
      const auto slash = left.find('/');
      const auto next = mirror.lookup(top, left.substr(0, slash));
      if (next == kNoNode || !S_ISDIR(mirror.attr(next).mode)) {
        recursive = true;  // not known by that name: it lies somewhere here
        break;
      }
      top = next;
      left.remove_prefix(slash == std::string_view::npos ? left.size() : slash + 1);
    }
    told_lost(top, recursive);
    mirror.distrust(top, recursive, lost.content, changes);
    again.emplace_back(top, recursive);
  });
  recheck(again);
}

// ---- what was told since a walk began

// Names count by a hash of 64 bits with a salt; an empty name is the node itself.
std::uint64_t TreeStore::Impl::told_key(const wire::NodeId& dir, std::string_view name) const {
  const auto node = stir(stir(told_salt ^ dir.ino) ^ dir.dev);
  return name.empty() ? node : stir(node ^ std::hash<std::string_view>{}(name)) ^ 1;
}

void TreeStore::Impl::told_name(const wire::NodeId& dir, std::string_view name) {
  const auto key = told_key(dir, name);
  base::MutexLock lock(ops_mu);
  if (!running_walks.empty()) told_key_locked(key);
}

void TreeStore::Impl::told_key_locked(std::uint64_t key) {
  told_log.last = ++op_epoch;
  if (told_log.keys.size() >= kMaxTold) {
    told_log.keys.clear();
    told_log.flooded = told_log.last;
  }
  told_log.keys[key] = told_log.last;
}

void TreeStore::Impl::told_listing(const wire::NodeId& dir) {
  base::MutexLock lock(ops_mu);
  if (running_walks.empty()) return;
  told_log.last = ++op_epoch;
  if (told_log.listings.size() >= kMaxToldListings) {
    told_log.listings.clear();
    told_log.flooded = told_log.last;
  }
  told_log.listings[dir] = told_log.last;
}

void TreeStore::Impl::told_lost(NodeIndex top, bool recursive) {
  base::MutexLock lock(ops_mu);
  if (running_walks.empty()) return;
  told_log.last = ++op_epoch;
  if (told_log.lost.size() >= kMaxLost) {
    told_log.lost.clear();
    top = Mirror::kRoot, recursive = true;
  }
  told_log.lost.push_back({top, recursive, told_log.last});
}

bool TreeStore::Impl::told_since(std::uint64_t began, const wire::NodeId& dir, std::string_view name) {
  const auto key = told_key(dir, name);
  base::MutexLock lock(ops_mu);
  if (told_log.flooded > began) return true;
  const auto found = told_log.keys.find(key);
  return found != told_log.keys.end() && found->second > began;
}

bool TreeStore::Impl::listing_told_since(std::uint64_t began, const Mirror& mirror, NodeIndex dir) {
  const auto id = wire::identity(mirror.attr(dir));
  std::vector<Lost> newer;
  {
    base::MutexLock lock(ops_mu);
    const auto found = told_log.listings.find(id);
    if (found != told_log.listings.end() && found->second > began) return true;
    for (const auto& lost : told_log.lost) {
      if (lost.epoch > began) newer.push_back(lost);
    }
  }
  for (const auto& lost : newer) {
    if (dir == lost.top) return true;
    for (auto at = dir; lost.recursive && at != Mirror::kRoot && at != kNoNode;) {
      at = mirror.parent(at);
      if (at == lost.top) return true;
    }
  }
  return false;
}

bool TreeStore::Impl::anything_told_since(std::uint64_t began, bool& flooded) {
  base::MutexLock lock(ops_mu);
  flooded = told_log.flooded > began;
  return told_log.last > began && !base::fault::active("sync.no_newer");
}

void TreeStore::Impl::questions_over(std::uint64_t id) {
  base::MutexLock lock(ops_mu);
  running_walks.erase(id);
  if (!running_walks.empty()) return;
  told_log = {};
  std::erase_if(operations, [](const auto& entry) { return entry.second.idle(); });
}

// ---- the public face

void TreeStore::attach(EventStream& events) {
  impl_->events = &events;
  const std::weak_ptr<Impl> weak = impl_;
  events.on_changed([weak](const wire::Changed& changed) {
    if (const auto impl = weak.lock()) impl->apply_changed(changed);
  });
  events.on_lost([weak](const wire::Lost& lost) {
    if (const auto impl = weak.lock()) impl->apply_lost(lost);
  });
}

void TreeStore::look_again(NodeIndex node) {
  const auto dir = read([&](const Mirror& mirror) {
    auto at = node;
    if (!S_ISDIR(mirror.attr(node).mode)) {
      at = kNoNode;
      mirror.names(node, [&](NodeIndex in, std::string_view) { at = in; });
    }
    return at;
  });
  impl_->recheck({{dir, false}});
}

std::uint64_t TreeStore::unknown_told() const { return impl_->unknown_told; }

std::shared_ptr<TreeStore::Question> TreeStore::ask_outside() {
  std::uint64_t id = 0;
  {
    base::MutexLock lock(impl_->mu);
    id = impl_->next_id++;
  }
  std::uint64_t began = 0;
  {
    base::MutexLock lock(impl_->ops_mu);
    began = impl_->op_epoch;
    impl_->running_walks.insert(id);
  }
  return {new Question(began), [weak = std::weak_ptr(impl_), id](Question* question) {
            if (const auto impl = weak.lock()) impl->questions_over(id);
            delete question;
          }};
}

bool TreeStore::told_since(const Question& question, const wire::NodeId& dir, std::string_view name) const {
  return impl_->told_since(question.began_, dir, name);
}
bool TreeStore::told_since(const Question& question, const wire::NodeId& node) const {
  return impl_->told_since(question.began_, node, {});
}
bool TreeStore::overtaken(const Question& question, NodeIndex node) const {
  return impl_->frozen(node, question.began_);
}

void TreeStore::barrier(Deadline deadline, Done done) { barrier(0, 0, deadline, std::move(done)); }

void TreeStore::barrier(std::uint64_t instance, std::uint64_t seq, Deadline deadline, Done done) {
  const auto whose = impl_->completion(std::move(done), deadline);
  const bool asked = impl_->with_root([impl = impl_.get(), whose, deadline, instance, seq](std::uint32_t) {
    impl->barrier(whose, deadline, {instance, seq});
  });
  if (!asked) impl_->finish_soon(whose, EAGAIN);
}

void TreeStore::ask_mounts() {
  std::vector<std::string> paths;
  const Impl::Use use(*impl_);
  if (!use) return;
  {
    base::MutexLock lock(impl_->mu);
    for (const auto& [path, subtree] : impl_->subtrees) paths.push_back(path);
  }
  for (const auto& path : paths) impl_->ask_mounts(path);
}

TreeStore::WatchStatus TreeStore::watch_status() const {
  WatchStatus status;
  std::map<std::string, wire::MountBelow> told;  // subtrees lie within one another
  status.kind = wire::WatchKind::kFanotify;
  {
    base::MutexLock lock(impl_->mu);
    for (const auto& [path, subtree] : impl_->subtrees) {
      ++status.subtrees;
      for (const auto& mount : subtree.mounts.mounts) told.emplace(mount.path, mount);
      status.mounts_left_out += subtree.mounts.left_out;
      if (subtree.watched(impl_->generation)) {
        ++status.watched;
        if (subtree.watch != wire::WatchKind::kFanotify && status.kind != wire::WatchKind::kNone)
          status.kind = subtree.watch;
      } else {
        status.kind = wire::WatchKind::kNone;
        status.error = subtree.watch_error;
      }
    }
    if (status.subtrees == 0) status.kind = wire::WatchKind::kNone;
    status.looking_again = impl_->rechecks.size();
  }
  for (auto& [path, mount] : told) {
    if (status.mounts.size() < wire::kMaxMountsTold) {
      status.mounts.push_back(std::move(mount));
    } else {
      ++status.mounts_left_out;
    }
  }
  status.changed = impl_->changed_states;
  status.lost = impl_->lost_told;
  status.unknown = impl_->unknown_told;
  if (impl_->events != nullptr) status.position = impl_->events->position();
  return status;
}

}  // namespace nearbox::sync
