// SPDX-License-Identifier: Apache-2.0
#include "fs/core/op_log.h"

#include <atomic>
#include <mutex>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/sync/fake_link.h"

namespace nearbox::fs {
namespace {

using namespace std::chrono_literals;
using sync::test::eventually;
using sync::test::FakeLink;

// The agent's side: takes operations in order, answers when told.
struct Agent {
  explicit Agent(FakeLink& to) : link(to) {
    link.serve_note(wire::Method::kApply, [this](const wire::Bytes& bytes) {
      auto apply = wire::decode<wire::Apply>(bytes);
      ASSERT_TRUE(apply);
      const std::lock_guard lock(mu);
      ++batches;
      for (auto& op : apply->ops) got.push_back(std::move(op));
    });
    link.serve(wire::Method::kRootOpen, [this](api::CallToken token, const wire::Bytes& bytes) {
      const auto open = wire::decode<wire::RootOpen>(bytes);
      ASSERT_TRUE(open);
      wire::RootReply reply;
      reply.root = new_root;
      reply.path = open->path;
      link.end(token, 0, wire::encode(reply));
    });
  }
  std::size_t count() {
    const std::lock_guard lock(mu);
    return got.size();
  }
  std::vector<wire::Op> ops() {
    const std::lock_guard lock(mu);
    return got;
  }
  FakeLink& link;
  std::uint32_t new_root = 9;
  std::mutex mu;
  std::vector<wire::Op> got;
  int batches = 0;
};

wire::OpDone done(std::uint64_t id, int error = 0) {
  wire::OpDone event;
  event.op_id = id;
  event.error = error;
  return event;
}

wire::Op write_op(std::size_t bytes) {
  wire::Op op;
  op.kind = wire::OpKind::kWrite;
  op.root = 1;
  op.path = "f";
  op.data.resize(bytes);
  return op;
}

class OpLogTest : public ::testing::Test {
 protected:
  OpLogTest() { link.connect(1, false); }
  ~OpLogTest() override { link.stop(); }
  FakeLink link{1};
  Agent agent{link};
  base::Timers timers;
  base::Logger log{2, base::LogLevel::kOff};
  OpLogOptions options;
  std::unique_ptr<OpLog> make() {
    return std::make_unique<OpLog>(
        link, timers, log, [] { return std::string("/w"); }, options);
  }
};

TEST_F(OpLogTest, NumbersAreDenseAndAppliedComesBeforeReply) {
  const auto ops = make();
  std::vector<std::string> steps;
  for (int i = 0; i < 3; ++i) {
    ops->submit(
        write_op(10), [&](const wire::OpDone& d) { steps.push_back("a" + std::to_string(d.op_id)); },
        [&](const wire::OpDone& d) { steps.push_back("r" + std::to_string(d.op_id)); });
  }
  ASSERT_TRUE(eventually([&] { return agent.count() == 3; }));
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(agent.ops()[i].op_id, i + 1);
  EXPECT_EQ(ops->unacknowledged(), 3u);
  bool drained = false;
  ops->when_drained([&] { drained = true; });
  ops->on_op_done(done(2));
  ops->on_op_done(done(2));  // repeated: nothing happens
  ops->on_op_done(done(1));
  EXPECT_FALSE(drained);
  ops->on_op_done(done(3));
  EXPECT_TRUE(drained);
  EXPECT_EQ(steps, (std::vector<std::string>{"a2", "r2", "a1", "r1", "a3", "r3"}));
  EXPECT_EQ(ops->unacknowledged(), 0u);
}

TEST_F(OpLogTest, UnacknowledgedAreSentAgainAfterAReconnect) {
  const auto ops = make();
  for (int i = 0; i < 3; ++i) ops->submit(write_op(10), {}, {});
  ASSERT_TRUE(eventually([&] { return agent.count() == 3; }));
  ops->on_op_done(done(2));
  link.lose();
  ops->submit(write_op(10), {}, {});  // dropped on the way
  link.connect(1, true);
  ASSERT_TRUE(eventually([&] { return agent.count() == 6; }));
  const auto got = agent.ops();
  EXPECT_EQ(got[3].op_id, 1u);
  EXPECT_EQ(got[4].op_id, 3u);
  EXPECT_EQ(got[5].op_id, 4u);
  EXPECT_EQ(got[3].op_flags & wire::kOpRetry, 0);
}

TEST_F(OpLogTest, ANewAgentGetsThemNumberedFromOneInTheNewRoot) {
  const auto ops = make();
  int lost_error = 0;
  ops->submit(write_op(10), {}, {});
  ops->submit(write_op(20), {}, {});
  auto orphan = write_op(30);
  orphan.orphan = 5;
  ops->submit(std::move(orphan), {}, [&](const wire::OpDone& d) { lost_error = d.error; });
  ASSERT_TRUE(eventually([&] { return agent.count() == 3; }));
  ops->on_op_done(done(1));
  link.lose();
  link.connect(2, false);
  ASSERT_TRUE(eventually([&] { return agent.count() == 4; }));
  EXPECT_EQ(lost_error, ESTALE);
  auto again = agent.ops()[3];
  EXPECT_EQ(again.op_id, 1u);
  EXPECT_EQ(again.data.size(), 20u);
  EXPECT_EQ(again.root, 9u);
  EXPECT_NE(again.op_flags & wire::kOpRetry, 0);
  ops->submit(write_op(40), {}, {});  // still made with the old root
  ASSERT_TRUE(eventually([&] { return agent.count() == 5; }));
  EXPECT_EQ(agent.ops()[4].op_id, 2u);
  EXPECT_EQ(agent.ops()[4].root, 9u);
  EXPECT_EQ(agent.ops()[4].op_flags & wire::kOpRetry, 0);
}

TEST_F(OpLogTest, NothingIsSentBeforeTheNewAgentIsKnown) {
  const auto ops = make();
  for (int i = 0; i < 3; ++i) ops->submit(write_op(10), {}, {});
  ASSERT_TRUE(eventually([&] { return agent.count() == 3; }));
  for (std::uint64_t id = 1; id <= 2; ++id) ops->on_op_done(done(id));
  link.lose();
  link.accept_notes();
  ops->submit(write_op(40), {}, {});
  ops->on_op_done(done(99));  // any other reason to send
  link.connect(2, false);
  ASSERT_TRUE(eventually([&] { return agent.count() >= 5; }));
  const auto got = agent.ops();
  ASSERT_EQ(got.size(), 5U);
  for (std::size_t i = 3; i < 5; ++i) {
    EXPECT_EQ(got[i].op_id, i - 2);
    EXPECT_EQ(got[i].root, 9u);
    // The last one no agent has seen: a result that is there already is somebody else's.
    EXPECT_EQ((got[i].op_flags & wire::kOpRetry) != 0, i == 3) << i;
  }
  link.lose();
  link.accept_notes();
  ops->submit(write_op(50), {}, {});
  link.connect(2, true);
  ASSERT_TRUE(eventually([&] { return agent.count() >= 8; }));
  ASSERT_EQ(agent.count(), 8U);
  for (std::size_t i = 5; i < 8; ++i) EXPECT_EQ(agent.ops()[i].op_id, i - 4);
}

TEST_F(OpLogTest, ANewAgentIsNotAskedForKeptFilesOfTheOldOne) {
  options.max_bytes = 3000;
  const auto ops = make();
  int kept_error = 0;
  ops->submit(write_op(2000), {}, {});
  auto kept = write_op(2000);
  kept.orphan = 1;
  ops->submit(std::move(kept), {}, [&](const wire::OpDone& d) { kept_error = d.error; });
  ops->submit(write_op(2001), {}, {});
  ASSERT_TRUE(eventually([&] { return agent.count() == 1; }));
  link.lose();
  link.connect(2, false);
  ASSERT_TRUE(eventually([&] { return agent.count() == 2; }));
  EXPECT_EQ(kept_error, ESTALE);
  ops->on_op_done(done(1));
  ASSERT_TRUE(eventually([&] { return agent.count() == 3; }));
  EXPECT_EQ(agent.ops()[2].op_id, 2u);
  EXPECT_EQ(agent.ops()[2].data.size(), 2001u);
  ops->on_op_done(done(2));
  EXPECT_EQ(ops->unacknowledged(), 0u);
}

TEST_F(OpLogTest, WhatDoesNotFitWaitsInOrderAndIsRefusedInTheEnd) {
  options.max_bytes = 3000;
  options.max_waiting = 2;
  const auto ops = make();
  std::vector<int> errors;
  for (int i = 0; i < 4; ++i) {
    ops->submit(write_op(2000), {}, [&](const wire::OpDone& d) { errors.push_back(d.error); });
  }
  EXPECT_EQ(errors, std::vector<int>{ENOSPC});
  EXPECT_EQ(ops->unacknowledged(), 3u);
  ASSERT_TRUE(eventually([&] { return agent.count() == 1; }));
  ops->on_op_done(done(1));
  ASSERT_TRUE(eventually([&] { return agent.count() == 2; }));
  EXPECT_EQ(agent.ops()[1].op_id, 2u);
  ops->on_op_done(done(2));
  ASSERT_TRUE(eventually([&] { return agent.count() == 3; }));
  ops->on_op_done(done(3));
  EXPECT_EQ(errors, (std::vector<int>{ENOSPC, 0, 0, 0}));
}

TEST_F(OpLogTest, LateRepliesTimeOutButTheFateIsStillApplied) {
  options.deadline = 100ms;
  options.max_bytes = 3000;
  const auto ops = make();
  std::atomic<int> replied{0}, applied{0}, error{0}, waiting_applied{0}, waiting_error{0};
  ops->submit(
      write_op(2500), [&](const wire::OpDone& d) { applied = d.error == 0 ? 1 : -1; },
      [&](const wire::OpDone& d) {
        error = d.error;
        ++replied;
      });
  ops->submit(
      write_op(2500), [&](const wire::OpDone& d) { waiting_applied = d.error; },
      [&](const wire::OpDone& d) { waiting_error = d.error; });
  ASSERT_TRUE(eventually([&] { return replied == 1 && waiting_error != 0; }));
  EXPECT_EQ(error, ETIMEDOUT);
  EXPECT_EQ(waiting_error, ETIMEDOUT);  // never sent: dropped
  EXPECT_EQ(waiting_applied, ETIMEDOUT);
  EXPECT_EQ(applied, 0);
  EXPECT_EQ(ops->unacknowledged(), 1u);
  ops->on_op_done(done(1));
  EXPECT_EQ(applied, 1);
  EXPECT_EQ(replied, 1);
  EXPECT_EQ(agent.count(), 1u);
}

TEST_F(OpLogTest, BatchesStayBelowTheMessageLimit) {
  const auto ops = make();
  link.lose();
  for (int i = 0; i < 20; ++i) ops->submit(write_op(400 * 1024), {}, {});
  link.connect(1, true);
  ASSERT_TRUE(eventually([&] { return agent.count() == 20; }));
  EXPECT_GE(agent.batches, 4);
  for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(agent.ops()[i].op_id, i + 1);
}

TEST_F(OpLogTest, CloseEndsEverything) {
  const auto ops = make();
  std::vector<int> errors;
  ops->submit(write_op(10), {}, [&](const wire::OpDone& d) { errors.push_back(d.error); });
  ops->close();
  ops->submit(write_op(10), {}, [&](const wire::OpDone& d) { errors.push_back(d.error); });
  EXPECT_EQ(errors, (std::vector<int>{ESHUTDOWN, ESHUTDOWN}));
}

TEST(DirRenames, WaitUntilNobodyHoldsThemBack) {
  DirRenames renames;
  int sent = 0;
  const auto epoch = renames.epoch();
  renames.hold();
  renames.hold();
  renames.begin([&] { ++sent; });
  renames.begin([&] { ++sent; });
  EXPECT_EQ(sent, 0);
  EXPECT_EQ(renames.waiting(), 2u);
  EXPECT_TRUE(renames.quiet_since(epoch));  // nothing is on its way
  renames.release();
  EXPECT_EQ(sent, 0);
  renames.release();
  EXPECT_EQ(sent, 2);
  EXPECT_EQ(renames.waiting(), 0u);
  EXPECT_FALSE(renames.quiet_since(epoch));
  renames.end();
  renames.end();
  EXPECT_TRUE(renames.quiet_since(renames.epoch()));
  renames.begin([&] { ++sent; });
  EXPECT_EQ(sent, 3);
}

TEST(DirRenames, TooManyAreNotHeldBack) {
  DirRenames renames;
  std::size_t sent = 0;
  renames.hold();
  for (std::size_t i = 0; i <= kMaxWaitingRenames; ++i) renames.begin([&] { ++sent; });
  EXPECT_EQ(sent, 1u);
  renames.release();
  EXPECT_EQ(sent, kMaxWaitingRenames + 1);
}

}  // namespace
}  // namespace nearbox::fs
