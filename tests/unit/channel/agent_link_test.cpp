// SPDX-License-Identifier: Apache-2.0
#include <random>

#include <gtest/gtest.h>

#include "tests/unit/channel/test_agent.h"

namespace nearbox::test {
namespace {

using wire::Method;

struct AgentLinkTest : ::testing::Test {
  base::Logger log{2, base::LogLevel::kOff};
  base::Timers timers;
  TestAgent agent;
};

TEST_F(AgentLinkTest, AnswersAUnaryCall) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto out = start(*link, Method::kInfo, bytes_of("hello"));
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, 0);
  EXPECT_EQ(out->payload, "hello");
}

TEST_F(AgentLinkTest, StreamsManyTimesItsCredit) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto o = options();
  o.credit = 100'000;
  o.lane = api::Lane::kBulk;
  auto out = start(*link, Method::kRead, range(7, 5'000'000), o);
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, 0);
  EXPECT_EQ(out->payload, "end");
  ASSERT_EQ(out->bytes.size(), 5'000'000u);
  for (std::size_t i = 0; i < out->bytes.size(); ++i) ASSERT_EQ(out->bytes[i], pattern(7 + i)) << i;
}

}  // namespace
}  // namespace nearbox::test
