// SPDX-License-Identifier: Apache-2.0
#include "fs/core/tree_hooks.h"

#include <atomic>
#include <cerrno>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/sync/fake_link.h"

namespace nearbox::fs {
namespace {

using sync::NodeIndex;

class TreeHooksTest : public ::testing::Test {
 protected:
  TreeHooksTest() {
    tree.write([&](sync::Mirror& m, sync::Changes& changes) {
      m.set_root(attr_of(1, 040755), changes);
      m.set_listing(sync::Mirror::kRoot, sync::Listing::kComplete);
    });
    link.connect(1, false);
  }
  static wire::Attr attr_of(std::uint64_t ino, std::uint32_t mode = 0100644) {
    wire::Attr attr;
    attr.ino = ino;
    attr.dev = 1;
    attr.mode = mode;
    return attr;
  }
  NodeIndex link_at(const std::string& name, std::uint64_t ino) {
    return tree.write([&](sync::Mirror& m, sync::Changes& changes) {
      return m.link(sync::Mirror::kRoot, name, attr_of(ino), {}, changes);
    });
  }
  base::Logger log{2, base::LogLevel::kOff};
  sync::test::FakeLink link{11};
  base::Timers timers;
  sync::TreeStore tree{link, timers, log};
  DirRenames renames;
};

// A file that was replaced here is kept by the agent for whoever has it open. The agent may have kept another
// one (somebody in the sandbox replaced it before), and the number is free for a new file, which a kernel
// that still holds the old one takes for it.
TEST_F(TreeHooksTest, AFileWithANameIsFoundByItWhateverIsKept) {
  Orphans orphans;
  const auto node = link_at("f", 7);
  orphans.hold(node);
  tree.write([&](sync::Mirror& m, sync::Changes& changes) {
    m.pin(node);
    m.unlink(sync::Mirror::kRoot, "f", changes);
  });
  EXPECT_FALSE(locate(tree, orphans, node, {1, 7}).has_value());
  ASSERT_TRUE(orphans.keep(node, 42));
  const auto kept = locate(tree, orphans, node, {1, 7});
  ASSERT_TRUE(kept.has_value());
  EXPECT_EQ(kept->orphan, 42u);
  ASSERT_EQ(link_at("g", 7), node);
  const auto named = locate(tree, orphans, node, {1, 7});
  ASSERT_TRUE(named.has_value());
  EXPECT_EQ(named->orphan, 0u);
  EXPECT_EQ(named->path, "g");
}

// The agent's answer about names is not taken where an own operation was done after the question.
TEST_F(TreeHooksTest, AnAnswerThatAnOwnOperationOvertookChangesNothing) {
  for (const bool overtaken : {false, true}) {
    const auto name = std::string(overtaken ? "a" : "b");
    const auto node = link_at(name, overtaken ? 7 : 8);
    std::atomic<bool> done{false};
    link.serve(wire::Method::kStatMany, [&](api::CallToken token, const wire::Bytes& bytes) {
      const auto call = wire::decode<wire::StatMany>(bytes);
      ASSERT_TRUE(call);
      wire::StatManyReply reply;
      for (const auto& path : call->paths) {
        wire::StatResult result;
        if (path.empty()) {
          result.attr = attr_of(1, 040755);
        } else {
          result.error = ENOENT;
        }
        reply.results.push_back(result);
      }
      if (overtaken) {
        tree.begin_operation(sync::Mirror::kRoot);
        tree.end_operation(sync::Mirror::kRoot);
      }
      link.end(token, 0, wire::encode(reply));
    });
    refresh(tree, link, renames, std::vector<std::string>{name}, [&] { done = true; });
    ASSERT_TRUE(sync::test::eventually([&] { return done.load(); }));
    const auto now = tree.read([&](const sync::Mirror& m) { return m.lookup(sync::Mirror::kRoot, name); });
    EXPECT_EQ(now, overtaken ? node : sync::kNoNode);
  }
}

}  // namespace
}  // namespace nearbox::fs
