// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "sync/push/plan.h"
#include "tools/agent/push_decide.h"

namespace nearbox::push {
namespace {

using index::Type;
using scan::Change;
using scan::ChangeKind;

index::Entry entry(Type type, int content = 0, std::uint64_t size = 10'000) {
  index::Entry out;
  out.stat.type = type;
  out.stat.mode = type == Type::kDirectory ? 0755 : 0644;
  out.stat.size = size;
  out.digest[0] = static_cast<unsigned char>(content);
  return out;
}
index::Entry file(int content, std::uint64_t size = 10'000) { return entry(Type::kFile, content, size); }
index::Entry dir() { return entry(Type::kDirectory); }

Change added(std::string path, index::Entry now) {
  return {ChangeKind::kAdded, std::move(path), now, {}, {}};
}
Change deleted(std::string path, index::Entry was) {
  return {ChangeKind::kDeleted, std::move(path), was, was, {}};
}
Change modified(std::string path, index::Entry was, index::Entry now) {
  return {ChangeKind::kModified, std::move(path), now, was, {}};
}

Plan plan_of(std::vector<Change> changes, const Options& options = {}, const Sources& sources = {}) {
  std::sort(changes.begin(), changes.end(), [](const Change& a, const Change& b) { return a.path < b.path; });
  return make_plan(std::move(changes), sources, options);
}

TEST(PushPlan, AFileThatCameWithTheContentOfOneThatWentIsRenamed) {
  const auto plan = plan_of({deleted("a/x", file(1)), added("b/x", file(1)), added("c", file(2))});
  ASSERT_EQ(plan.moves.size(), 1U);
  EXPECT_EQ(plan.moves[0].kind, wire::PushKind::kRename);
  EXPECT_EQ(plan.moves[0].source, "a/x");
  EXPECT_EQ(plan.moves[0].path, "b/x");
  EXPECT_TRUE(plan.deletes.empty());
  ASSERT_EQ(plan.contents.size(), 1U);
  EXPECT_EQ(plan.contents[0].path, "c");
}

TEST(PushPlan, OneThatWentIsTheSourceOfOneRenameAlone) {
  const auto plan = plan_of({deleted("old", file(1)), added("new1", file(1)), added("new2", file(1))});
  EXPECT_EQ(plan.moves.size(), 1U);
  EXPECT_EQ(plan.contents.size(), 1U);
  EXPECT_TRUE(plan.deletes.empty());
}

TEST(PushPlan, EmptyFilesAreNotRenamed) {
  const auto plan = plan_of({deleted("old", file(0, 0)), added("new", file(0, 0))});
  EXPECT_TRUE(plan.moves.empty());
  EXPECT_EQ(plan.deletes.size(), 1U);
}

TEST(PushPlan, ContentThatTheSandboxHasIsCopiedThere) {
  const Sources sources = {{key_of(file(1).digest), "lib/one"}};
  const auto plan = plan_of({added("two", file(1)), added("small", file(1, kMinCopyBytes - 1))}, {}, sources);
  ASSERT_EQ(plan.moves.size(), 1U);
  EXPECT_EQ(plan.moves[0].kind, wire::PushKind::kCopy);
  EXPECT_EQ(plan.moves[0].source, "lib/one");
  EXPECT_EQ(plan.contents.size(), 1U);
}

TEST(PushPlan, WithoutDeletesNothingIsRemovedOrMoved) {
  Options options;
  options.deletes = Deletes::kNone;
  const auto plan = plan_of({deleted("a", file(1)), deleted("d", dir()), added("b", file(1))}, options);
  EXPECT_TRUE(plan.deletes.empty());
  EXPECT_TRUE(plan.remove_dirs.empty());
  EXPECT_TRUE(plan.moves.empty());
  EXPECT_EQ(plan.contents.size(), 1U);
}

TEST(PushPlan, DirectoriesGoDeepestFirst) {
  const auto plan =
      plan_of({deleted("a", dir()), deleted("a/b", dir()), deleted("a/b/c", dir()), deleted("a.b", dir())});
  std::vector<std::string> order;
  for (const auto& action : plan.remove_dirs) order.push_back(action.path);
  const auto at = [&](const char* path) {
    return std::find(order.begin(), order.end(), path) - order.begin();
  };
  EXPECT_LT(at("a/b/c"), at("a/b"));
  EXPECT_LT(at("a/b"), at("a"));
}

TEST(PushPlan, AChangedFileIsConditionalOnWhatItWas) {
  const auto plan = plan_of({modified("f", file(1), file(2))});
  ASSERT_EQ(plan.contents.size(), 1U);
  const auto sent = entry_of(plan.contents[0]);
  EXPECT_EQ(sent.expect, wire::PushExpect::kBase);
  EXPECT_EQ(sent.base, wire_digest(file(1).digest));
  EXPECT_EQ(sent.digest, wire_digest(file(2).digest));
}

TEST(PushPlan, AnotherSortIsRemovedFirst) {
  const auto plan = plan_of({modified("d", dir(), file(1)), deleted("d/in", file(2)),
                             modified("f", file(3), dir()), added("f/in", file(4))});
  ASSERT_EQ(plan.remove_dirs.size(), 1U);
  EXPECT_EQ(plan.remove_dirs[0].path, "d");
  EXPECT_EQ(plan.deletes.size(), 2U);  // d/in and f
  EXPECT_EQ(plan.contents.size(), 2U);
  EXPECT_EQ(plan.contents[0].expect, wire::PushExpect::kAbsent);
}

TEST(PushPlan, WhatARuleTakesNowIsForgottenAlone) {
  const auto plan = plan_of({{ChangeKind::kLeftOut, "x", file(1), file(1), {}}});
  EXPECT_EQ(plan.forget, std::vector<std::string>{"x"});
  EXPECT_TRUE(plan.empty());
}

std::vector<Change> moved_tree() {
  return {deleted("a", dir()),       deleted("a/1", file(1)), deleted("a/s", dir()),
          deleted("a/s/2", file(2)), added("b", dir()),       added("b/1", file(1)),
          added("b/s", dir()),       added("b/s/2", file(2)), deleted("z", file(9))};
}

TEST(PushPlan, ADirectoryIsRenamedAsAWhole) {
  const auto plan = plan_of(moved_tree());
  ASSERT_EQ(plan.trees.size(), 1U);
  EXPECT_EQ(plan.trees[0].from, "a");
  EXPECT_EQ(plan.trees[0].to, "b");
  EXPECT_EQ(plan.trees[0].entries.size(), 4U);
  EXPECT_TRUE(plan.moves.empty());
  EXPECT_TRUE(plan.contents.empty());
  EXPECT_TRUE(plan.remove_dirs.empty());
  ASSERT_EQ(plan.deletes.size(), 1U);
  EXPECT_EQ(plan.deletes[0].path, "z");
}

TEST(PushPlan, WhatChangedInARenamedDirectoryIsDoneAfterwards) {
  auto changes = moved_tree();
  changes[1] = deleted("a/1", file(7));             // edited while it moved
  changes.push_back(deleted("a/s/gone", file(5)));  // deleted
  changes.push_back(added("b/new", file(6)));       // added
  const auto plan = plan_of(changes);
  ASSERT_EQ(plan.trees.size(), 1U);
  ASSERT_EQ(plan.contents.size(), 2U);
  EXPECT_EQ(plan.contents[0].path, "b/1");
  EXPECT_EQ(entry_of(plan.contents[0]).base, wire_digest(file(7).digest));
  EXPECT_EQ(plan.contents[1].path, "b/new");
  ASSERT_EQ(plan.deletes.size(), 2U);
  EXPECT_EQ(plan.deletes[0].path, "b/s/gone");
}

TEST(PushPlan, ADirectoryThatIsMostlyAnotherIsNotRenamed) {
  const auto plan = plan_of({deleted("a", dir()), deleted("a/1", file(1)), deleted("a/2", file(2)),
                             deleted("a/3", file(3)), added("b", dir()), added("b/1", file(1))});
  EXPECT_TRUE(plan.trees.empty());
  EXPECT_EQ(plan.moves.size(), 1U);
}

TEST(PushPlan, SlowLinksArePackedTighter) {
  EXPECT_EQ(level_for(0), 1);
  EXPECT_GT(level_for(100'000), level_for(1'000'000));
  EXPECT_GT(level_for(1'000'000), level_for(10'000'000));
  EXPECT_EQ(level_for(500e6), 1);
}

// ---- what the agent decides -----------------------------------------------------------------------

using agent::decide_delete;
using agent::decide_push;
using agent::PushFound;
using agent::PushStep;

PushFound found(PushFound::Kind kind, int content = 0) { return {kind, wire_digest(file(content).digest)}; }

wire::PushEntry wanted(wire::PushExpect expect, wire::PushConflict conflict) {
  wire::PushEntry out;
  out.expect = expect;
  out.conflict = conflict;
  out.digest = wire_digest(file(2).digest);
  out.base = wire_digest(file(1).digest);
  return out;
}

TEST(PushDecide, TheBaseIsTheCondition) {
  using Kind = PushFound::Kind;
  const auto both = wanted(wire::PushExpect::kBase, wire::PushConflict::kKeepBoth);
  EXPECT_EQ(decide_push(both, found(Kind::kFile, 1)), PushStep::kReplace);
  EXPECT_EQ(decide_push(both, found(Kind::kFile, 2)), PushStep::kAlready);
  EXPECT_EQ(decide_push(both, found(Kind::kFile, 3)), PushStep::kKeepBoth);
  EXPECT_EQ(decide_push(both, found(Kind::kSymlink, 1)), PushStep::kKeepBoth);
  EXPECT_EQ(decide_push(both, found(Kind::kNothing)), PushStep::kMake);
  EXPECT_EQ(decide_push(both, found(Kind::kDirectory)), PushStep::kLeave);
  EXPECT_EQ(decide_push(both, found(Kind::kOther)), PushStep::kLeave);
  const auto leave = wanted(wire::PushExpect::kBase, wire::PushConflict::kLeave);
  EXPECT_EQ(decide_push(leave, found(Kind::kFile, 3)), PushStep::kLeave);
  EXPECT_EQ(decide_push(leave, found(Kind::kNothing)), PushStep::kLeave);
  const auto over = wanted(wire::PushExpect::kBase, wire::PushConflict::kOverwrite);
  EXPECT_EQ(decide_push(over, found(Kind::kFile, 3)), PushStep::kReplace);
  EXPECT_EQ(decide_push(over, found(Kind::kDirectory)), PushStep::kLeave);
  const auto absent = wanted(wire::PushExpect::kAbsent, wire::PushConflict::kKeepBoth);
  EXPECT_EQ(decide_push(absent, found(Kind::kFile, 1)), PushStep::kKeepBoth);
}

TEST(PushDecide, OnlyWhatWasExpectedIsDeleted) {
  using Kind = PushFound::Kind;
  const auto gone = wanted(wire::PushExpect::kBase, wire::PushConflict::kKeepBoth);
  EXPECT_EQ(decide_delete(gone, found(Kind::kFile, 1)), PushStep::kReplace);
  EXPECT_EQ(decide_delete(gone, found(Kind::kFile, 3)), PushStep::kLeave);
  EXPECT_EQ(decide_delete(gone, found(Kind::kDirectory)), PushStep::kLeave);
  EXPECT_EQ(decide_delete(gone, found(Kind::kNothing)), PushStep::kAlready);
}

}  // namespace
}  // namespace nearbox::push
