// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <sys/stat.h>
#include <vector>

#include <zstd.h>

#include "client/wire/tree.h"
#include "tests/unit/sync/fake_link.h"

namespace nearbox::sync::test {

// A sandbox's tree for a FakeLink: answers kRootOpen, kStatMany, kTree and kTreeHurry from a map of
// paths. All of it on the link thread; tests change it through FakeLink::do_now().
class FakeTree {
 public:
  explicit FakeTree(FakeLink& link) : link_(link) {
    put("", S_IFDIR | 0755);
    link_.serve(wire::Method::kRootOpen, [this](api::CallToken token, const wire::Bytes& payload) {
      opened = wire::decode<wire::RootOpen>(payload)->path;
      if (root_error != 0) return link_.end(token, root_error);
      if (opened.starts_with("/canonical/")) {
        const auto below = opened.substr(std::string("/canonical/").size());
        if (!nodes.contains(below)) return link_.end(token, ENOENT);
        return link_.end(token, 0, wire::encode(wire::RootReply{root + 1, opened, nodes.at(below), 0}));
      }
      link_.end(token, 0, wire::encode(wire::RootReply{root, "/canonical", nodes.at(""), 0}));
    });
    link_.serve(wire::Method::kStatMany,
                [this](api::CallToken token, const wire::Bytes& payload) { stat_many(token, payload); });
    link_.serve(wire::Method::kTree,
                [this](api::CallToken token, const wire::Bytes& payload) { tree(token, payload); });
    link_.serve_note(wire::Method::kTreeHurry, [this](const wire::Bytes& payload) {
      const auto hurry = wire::decode<wire::TreeHurry>(payload);
      hurried.push_back(hurry->path);
      if (on_hurry) on_hurry(hurry->path);
    });
  }

  wire::Attr& put(const std::string& path, std::uint32_t mode) {
    auto& attr = nodes[path];
    attr.dev = 1, attr.ino = next_ino_++, attr.mode = mode, attr.nlink = 1;
    attr.ctime_ns = static_cast<std::int64_t>(attr.ino);
    return attr;
  }
  void remove(const std::string& path) {
    std::erase_if(nodes,
                  [&](const auto& node) { return node.first == path || node.first.starts_with(path + "/"); });
  }
  std::vector<std::string> names(const std::string& dir) const {
    const auto prefix = dir.empty() ? "" : dir + "/";
    std::vector<std::string> out;
    for (const auto& [path, attr] : nodes) {
      if (path.empty() || path == dir || !path.starts_with(prefix)) continue;
      if (path.find('/', prefix.size()) == std::string::npos) out.push_back(path.substr(prefix.size()));
    }
    return out;
  }
  std::vector<wire::TreeBlock> blocks(const std::string& dir) const {
    std::vector<wire::TreeBlock> out(1);
    out.back().path = dir, out.back().attr = nodes.at(dir);
    for (const auto& name : names(dir)) {
      if (out.back().entries.size() == entries_per_block) {
        out.back().flags |= wire::kTreeMore;
        out.push_back({dir, nodes.at(dir), 0, 0, {}});
      }
      out.back().entries.push_back({name, nodes.at(dir.empty() ? name : dir + "/" + name), {}});
    }
    return out;
  }
  static wire::Bytes pack(const wire::Bytes& bytes) {
    wire::Bytes packed(ZSTD_compressBound(bytes.size()));
    packed.resize(ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), 1));
    return packed;
  }

  std::map<std::string, wire::Attr> nodes;
  std::uint32_t root = 7;
  int root_error = 0;
  std::string opened;
  std::size_t entries_per_block = 5;
  std::vector<std::string> hurried;
  std::function<void(const std::string&)> on_hurry;
  // Takes the walk over in place of the answer; true when it did. The token is ended by the test.
  std::function<bool(api::CallToken, const wire::Tree&)> on_tree;

  void stat_many(api::CallToken token, const wire::Bytes& payload) {
    const auto ask = wire::decode<wire::StatMany>(payload);
    if (ask->root != root) return link_.end(token, EBADF);
    wire::StatManyReply reply;
    for (const auto& path : ask->paths) {
      auto& result = reply.results.emplace_back();
      if (const auto found = nodes.find(path); found != nodes.end()) {
        result.attr = found->second;
      } else {
        result.error = ENOENT;
      }
    }
    link_.end(token, 0, wire::encode(reply));
  }
  void tree(api::CallToken token, const wire::Bytes& payload) {
    const auto ask = wire::decode<wire::Tree>(payload);
    if (on_tree && on_tree(token, *ask)) return;
    answer_tree(token, *ask);
  }
  void answer_tree(api::CallToken token, const wire::Tree& ask) {
    if (ask.root != root) return link_.end(token, EBADF);
    if (!nodes.contains(ask.path)) return link_.end(token, ENOENT);
    if (!S_ISDIR(nodes.at(ask.path).mode)) return link_.end(token, ENOTDIR);
    wire::Bytes bytes;
    wire::TreeEncoder encoder;
    std::deque<std::string> left{ask.path};
    wire::TreeReply reply;
    while (!left.empty()) {
      const auto dir = left.front();
      left.pop_front();
      if (ask.max_entries != 0 && reply.entries >= ask.max_entries) {
        reply.truncated = true;
        encoder.add({dir, nodes.at(dir), wire::kTreeNotExpanded, 0, {}}, bytes);
        continue;
      }
      for (const auto& block : blocks(dir)) {
        reply.entries += block.entries.size();
        encoder.add(block, bytes);
      }
      for (const auto& name : names(dir)) {
        const auto path = dir.empty() ? name : dir + "/" + name;
        if (!S_ISDIR(nodes.at(path).mode)) continue;
        if (ask.depth == 0) {
          left.push_back(path);
        } else {
          encoder.add({path, nodes.at(path), wire::kTreeNotExpanded, 0, {}}, bytes);
        }
      }
    }
    if (link_.chunk(token, pack(bytes))) link_.end(token, 0, wire::encode(reply));
  }

 private:
  FakeLink& link_;
  std::uint64_t next_ino_ = 100;
};

}  // namespace nearbox::sync::test
