// SPDX-License-Identifier: Apache-2.0
#include "fs/core/tree_hooks.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "fs/core/calls.h"

namespace nearbox::fs {
namespace {

constexpr std::chrono::seconds kRefreshDeadline{10};
constexpr std::size_t kMaxLevels = 64;  // directories above a name that are asked for with it

bool same(const wire::Attr& attr, const wire::NodeId& id) {
  return wire::same_node(wire::identity(attr), id);
}

std::string parent_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

// The agent's answers for a name and for its directory, brought into the mirror.
void take_stat(sync::TreeStore& tree, const sync::TreeStore::Question& question, const std::string& path,
               const wire::StatResult& result, const wire::StatResult& directory, bool quiet) {
  const auto slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (directory.error != 0) return;  // it moved: a delta or a rescan says where
  tree.write([&](sync::Mirror& mirror, sync::Changes& changes) {
    const auto parent = mirror.walk(sync::Mirror::kRoot, parent_of(path));
    if (parent == sync::kNoNode) return;
    const auto there = mirror.attr(parent);
    if (!same(directory.attr, wire::identity(there))) return;
    if (tree.told_since(question, wire::identity(there), name)) return;
    const bool may_lead = quiet && !tree.overtaken(question, parent);
    const auto child = mirror.lookup(parent, name);
    if (result.error == ENOENT) {
      if (child != sync::kNoNode && may_lead) mirror.unlink(parent, name, changes);
    } else if (result.error == 0) {
      const wire::NodeId id = wire::identity(result.attr);
      if (child != sync::kNoNode && same(mirror.attr(child), id)) {
        if (!tree.told_since(question, id) && !tree.overtaken(question, child)) {
          mirror.set_attr(child, result.attr, changes);
        }
      } else if (may_lead) {
        mirror.link(parent, name, result.attr, result.target, changes);
      }
    }
  });
}

// The paths with the directories above them, each before what lies in it.
std::vector<std::string> with_directories(const std::vector<std::string>& paths) {
  std::set<std::string> all;
  for (const auto& path : paths) {
    std::string at = path;
    for (std::size_t i = 0; i <= kMaxLevels && all.size() < wire::kMaxStatMany; ++i) {
      if (!all.insert(at).second || at.empty()) break;
      at = parent_of(at);
    }
  }
  return {all.begin(), all.end()};
}

}  // namespace

std::optional<wire::PathCall> locate(sync::TreeStore& tree, const Orphans& orphans, sync::NodeIndex node,
                                     const wire::NodeId& id) {
  wire::PathCall call;
  call.root = tree.root();
  call.expect = id;
  auto path = tree.read([&](const sync::Mirror& mirror) -> std::optional<std::string> {
    if (!mirror.alive(node) || !same(mirror.attr(node), id)) return std::nullopt;
    return mirror.path(node);
  });
  if (path) {
    // Whatever is kept for the node: a sandbox gives the number of a file that went to a new one.
    call.path = std::move(*path);
    return call;
  }
  call.orphan = orphans.number(node);
  if (call.orphan == 0) return std::nullopt;
  return call;
}

void refresh(sync::TreeStore& tree, api::AgentLink& link, const DirRenames& renames,
             const std::vector<std::string>& paths, std::function<void()> done) {
  const auto epoch = renames.epoch();
  const bool quiet = renames.quiet_since(epoch);
  wire::StatMany message;
  message.root = tree.root();
  message.paths = with_directories(paths);
  auto take = [&tree, &renames, epoch, quiet, question = tree.ask_outside(), all = message.paths,
               done = std::move(done)](int error, wire::StatManyReply&& reply) {
    for (std::size_t i = 0; error == 0 && reply.results.size() == all.size() && i < all.size(); ++i) {
      const auto above = std::lower_bound(all.begin(), all.end(), parent_of(all[i]));
      if (all[i].empty() || above == all.end() || *above != parent_of(all[i])) continue;
      const auto& directory = reply.results[static_cast<std::size_t>(above - all.begin())];
      take_stat(tree, *question, all[i], reply.results[i], directory, quiet && renames.quiet_since(epoch));
    }
    done();
  };
  ask<wire::StatManyReply>(link, wire::Method::kStatMany, message,
                           std::chrono::steady_clock::now() + kRefreshDeadline, std::move(take));
}

void refresh(sync::TreeStore& tree, api::AgentLink& link, const DirRenames& renames, sync::NodeIndex node,
             std::function<void()> done) {
  auto path = tree.read([&](const sync::Mirror& mirror) -> std::optional<std::string> {
    return mirror.alive(node) ? mirror.path(node) : std::nullopt;
  });
  if (!path || path->empty()) return done();
  refresh(tree, link, renames, std::vector<std::string>{std::move(*path)}, std::move(done));
}

BlockCacheHooks tree_hooks(sync::TreeStore& tree, api::AgentLink& link, OpLog& log, base::Timers& timers) {
  BlockCacheHooks hooks;
  hooks.locate = [&tree, &log](sync::NodeIndex node, const wire::NodeId& id) {
    return locate(tree, log.orphans(), node, id);
  };
  hooks.refresh = [&tree, &link, &log](sync::NodeIndex node, std::function<void()> done) {
    refresh(tree, link, log.dir_renames(), node, std::move(done));
  };
  hooks.changed = [&tree](sync::NodeIndex node, const wire::Attr& attr) {
    tree.write([&](sync::Mirror& mirror, sync::Changes& changes) {
      const auto have = mirror.attr(node);
      if (!same(have, wire::identity(attr))) return;
      // With a counter, a state not above what is known is older than what an event told, or the same.
      const bool counted = have.version != 0 && attr.version != 0;
      if (!counted || attr.version > have.version) mirror.set_attr(node, attr, changes);
    });
  };
  hooks.attr = [&tree](sync::NodeIndex node) {
    return tree.read([&](const sync::Mirror& mirror) { return mirror.attr(node); });
  };
  hooks.later = [&timers](std::chrono::milliseconds delay, std::function<void()> fn) {
    timers.after(delay, std::move(fn));
  };
  return hooks;
}

}  // namespace nearbox::fs
