// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/executor.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "client/base/timers.h"
#include "tests/unit/agent/agent_test_util.h"

namespace nearbox::agent {
namespace {

// Notes when each operation began and ended, on one counter.
struct Trace {
  std::mutex mu;
  std::uint64_t clock = 0;
  std::map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> spans;
  std::vector<std::uint64_t> done;

  wire::OpDone apply(const wire::Op& op) {
    {
      const std::lock_guard lock(mu);
      EXPECT_EQ(spans.count(op.op_id), 0U) << "applied twice: " << op.op_id;
      spans[op.op_id].first = ++clock;
    }
    for (int i = 0; i < static_cast<int>(op.size); ++i) std::this_thread::yield();
    const std::lock_guard lock(mu);
    spans[op.op_id].second = ++clock;
    wire::OpDone result;
    result.op_id = op.op_id;
    return result;
  }
  std::size_t count() {
    const std::lock_guard lock(mu);
    return done.size();
  }
};

std::unique_ptr<Executor> make(Trace& trace, std::shared_ptr<Parking> parking = nullptr) {
  return std::make_unique<Executor>([&](const wire::Op& op) { return trace.apply(op); },
                                    [&](const wire::Op& op, const wire::OpDone&) {
                                      const std::lock_guard lock(trace.mu);
                                      trace.done.push_back(op.op_id);
                                    },
                                    std::move(parking));
}

bool conflict(const wire::Op& a, const wire::Op& b) {
  if (((a.op_flags | b.op_flags) & wire::kOpBarrier) != 0) return true;
  for (const auto& x : a.keys) {
    for (const auto& y : b.keys) {
      if (x.key == y.key && (x.exclusive || y.exclusive)) return true;
    }
  }
  return false;
}

std::vector<wire::Op> random_ops(std::mt19937_64& rng, std::uint64_t first, std::size_t count) {
  std::vector<wire::Op> ops(count);
  for (auto& op : ops) {
    op.op_id = first++;
    op.size = rng() % 8;
    for (std::size_t k = rng() % 4; k > 0; --k) op.keys.push_back({rng() % 6, rng() % 2 == 0});
    if (rng() % 40 == 0) op.op_flags = wire::kOpBarrier;
  }
  return ops;
}

// Property: two operations that conflict never overlap and keep their order; each runs once.
TEST(ExecutorModel, ConflictingOperationsKeepTheirOrder) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    Trace trace;
    auto executor = make(trace);
    const auto ops = random_ops(rng, 1, 300);
    for (std::size_t at = 0; at < ops.size();) {
      const auto n = std::min<std::size_t>(1 + rng() % 40, ops.size() - at);
      const auto begin = ops.begin() + static_cast<long>(at);
      ASSERT_TRUE(executor->submit({begin, begin + static_cast<long>(n)}));
      if (rng() % 3 == 0) {  // sent again after a reconnect
        ASSERT_TRUE(executor->submit({ops.begin(), begin + static_cast<long>(n)}));
      }
      at += n;
    }
    ASSERT_TRUE(test::eventually([&] { return trace.count() == ops.size(); }));
    for (std::size_t i = 0; i < ops.size(); ++i) {
      for (std::size_t j = i + 1; j < ops.size(); ++j) {
        if (!conflict(ops[i], ops[j])) continue;
        ASSERT_LT(trace.spans[ops[i].op_id].second, trace.spans[ops[j].op_id].first)
            << ops[i].op_id << " and " << ops[j].op_id;
      }
    }
  }
}

TEST(Executor, WaitsForAPredecessorThatComesLater) {
  Trace trace;
  auto executor = make(trace);
  std::mt19937_64 rng(3);
  auto ops = random_ops(rng, 1, 10);
  for (auto& op : ops) op.keys = {{1, true}};
  ASSERT_TRUE(executor->submit({ops[0]}));
  ASSERT_TRUE(executor->submit({ops.begin() + 5, ops.end()}));
  ASSERT_TRUE(test::eventually([&] { return trace.count() == 1; }));
  EXPECT_TRUE(test::eventually([&] { return executor->waiting() == 5; }));
  ASSERT_TRUE(executor->submit({ops.begin() + 1, ops.begin() + 5}));
  ASSERT_TRUE(test::eventually([&] { return trace.count() == 10; }));
  EXPECT_TRUE(std::is_sorted(trace.done.begin(), trace.done.end()));
}

// What a client sent under the numbers of another agent waits for ever; its renumbered ones do not.
TEST(Executor, ASessionBeginsWithOne) {
  Trace trace;
  auto executor = make(trace);
  std::mt19937_64 rng(5);
  const auto ops = random_ops(rng, 1, 60);
  ASSERT_TRUE(executor->submit({ops[56]}));
  ASSERT_TRUE(executor->submit({ops.begin(), ops.begin() + 10}));
  ASSERT_TRUE(test::eventually([&] { return trace.count() == 10; }));
  EXPECT_TRUE(
      test::eventually([&] { return executor->waiting() == 1; }));  // the last one is told before it is over
  ASSERT_TRUE(executor->submit({ops.begin() + 10, ops.end()}));
  ASSERT_TRUE(test::eventually([&] { return trace.count() == 60; }));
}

TEST(Executor, IndependentOperationsPassAHeldOne) {
  test::Faults faults;
  faults.set("agent.hold_op held*\n");
  ASSERT_TRUE(faults.reaches("agent.hold_op", "held", true));
  base::Timers timers;
  auto parking = std::make_shared<Parking>(timers);
  Trace trace;
  auto executor = make(trace, parking);
  std::vector<wire::Op> ops(60);
  for (std::size_t i = 0; i < ops.size(); ++i) {
    ops[i].op_id = i + 1;
    ops[i].path = i < 50 ? "held" + std::to_string(i) : "free";
    ops[i].keys = {{i, true}};
  }
  ops[59].keys = {{3, true}};  // depends on a held one
  ASSERT_TRUE(executor->submit(ops));
  ASSERT_TRUE(test::eventually([&] { return trace.count() == 9 && parking->size() == 50; }));
  faults.set("");
  ASSERT_TRUE(test::eventually([&] { return trace.count() == 60; }));
  EXPECT_LT(trace.spans[4].second, trace.spans[60].first);
}

TEST(Executor, RefusesMoreBytesThanItsBound) {
  test::Faults faults;
  faults.set("agent.hold_op\n");
  ASSERT_TRUE(faults.reaches("agent.hold_op", "x", true));
  base::Timers timers;
  auto parking = std::make_shared<Parking>(timers);
  Trace trace;
  auto executor = make(trace, parking);
  bool taken = true;
  std::uint64_t id = 1;
  while (taken && id < 1000) {
    wire::Op op;
    op.op_id = id++;
    op.data.resize(wire::kMaxWriteBytes);
    taken = executor->submit({op});
  }
  EXPECT_FALSE(taken);
  EXPECT_NEAR(static_cast<double>(id), 128, 3);
  parking->close();
}

TEST(Executor, EndsWithOperationsWaiting) {
  Trace trace;
  auto executor = make(trace);
  std::mt19937_64 rng(4);
  ASSERT_TRUE(executor->submit(random_ops(rng, 1, 2000)));
  executor.reset();
  EXPECT_LE(trace.done.size(), 2000U);
}

}  // namespace
}  // namespace nearbox::agent
