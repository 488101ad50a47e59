// SPDX-License-Identifier: Apache-2.0
#include "fs/core/tree_hooks.h"

#include <cerrno>
#include <chrono>
#include <string>
#include <utility>

#include "fs/core/calls.h"

namespace nearbox::fs {
namespace {

constexpr std::chrono::seconds kRefreshDeadline{10};

bool same(const wire::Attr& attr, const wire::NodeId& id) { return attr.dev == id.dev && attr.ino == id.ino; }

std::string parent_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

// The agent's answers for a name and for its directory, brought into the mirror.
void take_stat(sync::TreeStore& tree, const std::string& path, const wire::StatResult& result,
               const wire::StatResult& directory, bool may_remove) {
  const auto slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (directory.error != 0) return;  // it moved: a delta or a rescan says where
  tree.write([&](sync::Mirror& mirror, sync::Changes& changes) {
    const auto parent = mirror.walk(sync::Mirror::kRoot, parent_of(path));
    if (parent == sync::kNoNode) return;
    const auto there = mirror.attr(parent);
    if (!same(directory.attr, {there.dev, there.ino})) return;
    const auto child = mirror.lookup(parent, name);
    if (result.error == ENOENT) {
      if (child != sync::kNoNode && may_remove) mirror.unlink(parent, name, changes);
    } else if (result.error == 0) {
      const wire::NodeId id{result.attr.dev, result.attr.ino};
      if (child != sync::kNoNode && same(mirror.attr(child), id)) {
        mirror.set_attr(child, result.attr, changes);
      } else if (may_remove) {
        mirror.link(parent, name, result.attr, result.target, changes);
      }
    }
  });
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

void refresh(sync::TreeStore& tree, api::AgentLink& link, const DirRenames& renames, sync::NodeIndex node,
             std::function<void()> done) {
  const auto epoch = renames.epoch();
  const bool quiet = renames.quiet_since(epoch);
  auto path = tree.read([&](const sync::Mirror& mirror) -> std::optional<std::string> {
    return mirror.alive(node) ? mirror.path(node) : std::nullopt;
  });
  if (!path || path->empty()) return done();
  wire::StatMany message;
  message.root = tree.root();
  message.paths = {*path, parent_of(*path)};
  ask<wire::StatManyReply>(link, wire::Method::kStatMany, message,
                           std::chrono::steady_clock::now() + kRefreshDeadline,
                           [&tree, &renames, epoch, quiet, path = std::move(*path), done = std::move(done)](
                               int error, wire::StatManyReply&& reply) {
                             if (error == 0 && reply.results.size() == 2) {
                               const bool may_remove = quiet && renames.quiet_since(epoch);
                               take_stat(tree, path, reply.results[0], reply.results[1], may_remove);
                             }
                             done();
                           });
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
      if (same(mirror.attr(node), {attr.dev, attr.ino})) mirror.set_attr(node, attr, changes);
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
