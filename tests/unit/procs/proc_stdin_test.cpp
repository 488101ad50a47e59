// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_stdin.h"

#include <memory>
#include <string>

#include <gtest/gtest.h>

namespace nearbox::agent {
namespace {

class NoResponder : public channel::Responder {
 public:
  bool send(wire::ByteView) override { return false; }
  void end(int, wire::ByteView) override {}
  bool cancelled() const override { return gone; }
  std::uint32_t call_id() const override { return 0; }
  bool gone = false;
};

class StdinQueueTest : public ::testing::Test {
 protected:
  void push(std::uint64_t offset, std::string_view text, bool eof = false) {
    wire::ProcInput input{1, offset, eof, {}};
    const auto view = wire::as_view(text);
    input.data.assign(view.begin(), view.end());
    queue.push(input, std::make_shared<NoResponder>(), answers);
  }
  std::string front() const { return std::string(wire::as_text(queue.front())); }

  StdinQueue queue;
  StdinQueue::Answers answers;
};

TEST_F(StdinQueueTest, AnswersWhenWritten) {
  push(0, "hello");
  EXPECT_TRUE(answers.empty());
  queue.wrote(4, answers);
  EXPECT_TRUE(answers.empty());
  queue.wrote(1, answers);
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].accepted, 5U);
  EXPECT_FALSE(queue.pending());
}

TEST_F(StdinQueueTest, SkipsWhatItHas) {
  push(0, "abc");
  push(1, "bcdef");
  EXPECT_EQ(front(), "abcdef");
  push(0, "ab");
  queue.wrote(6, answers);
  EXPECT_EQ(answers.size(), 3U);
  push(2, "cdef");
  ASSERT_EQ(answers.size(), 4U);
  EXPECT_EQ(answers[3].accepted, 6U);
}

TEST_F(StdinQueueTest, CancelledCallsGiveTheirPlacesBack) {
  std::vector<std::shared_ptr<NoResponder>> gone;
  const auto view = wire::as_view("x");
  for (std::size_t i = 0; i < StdinQueue::kMaxWaiting; ++i) {
    gone.push_back(std::make_shared<NoResponder>());
    queue.push({1, i, false, {view.begin(), view.end()}}, gone.back(), answers);
  }
  push(StdinQueue::kMaxWaiting, "y");
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].error, EAGAIN);
  for (const auto& one : gone) one->gone = true;
  answers.clear();
  push(StdinQueue::kMaxWaiting, "y");
  ASSERT_EQ(answers.size(), StdinQueue::kMaxWaiting);
  EXPECT_EQ(answers[0].error, ECANCELED);
  answers.clear();
  queue.wrote(StdinQueue::kMaxWaiting + 1, answers);
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].error, 0);
}

TEST_F(StdinQueueTest, TakesNothingBehindAGap) {
  push(3, "def");
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].error, 0);
  EXPECT_EQ(answers[0].accepted, 0U);
  EXPECT_FALSE(queue.pending());
}

TEST_F(StdinQueueTest, FullMakesCallsWaitWithoutTheirBytes) {
  push(0, std::string(StdinQueue::kMaxQueued, 'a'));
  push(StdinQueue::kMaxQueued, "more");
  EXPECT_EQ(queue.front().size(), StdinQueue::kMaxQueued);
  for (std::size_t i = 2; i < StdinQueue::kMaxWaiting; ++i) push(StdinQueue::kMaxQueued, "more");
  EXPECT_TRUE(answers.empty());
  push(StdinQueue::kMaxQueued, "more");
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].error, EAGAIN);
  queue.wrote(StdinQueue::kMaxQueued, answers);
  EXPECT_EQ(answers.size(), StdinQueue::kMaxWaiting + 1);
  for (const auto& answer : answers) {
    EXPECT_EQ(answer.accepted, answer.error == 0 ? StdinQueue::kMaxQueued : 0);
  }
}

TEST_F(StdinQueueTest, EndComesAfterTheBytes) {
  push(0, "abc", true);
  EXPECT_FALSE(queue.wants_end());
  queue.wrote(3, answers);
  EXPECT_TRUE(queue.wants_end());
  EXPECT_TRUE(answers.empty());
  queue.ended(answers);
  EXPECT_EQ(answers.size(), 1U);
  push(0, "abc", true);  // again, after a reconnect
  ASSERT_EQ(answers.size(), 2U);
  EXPECT_EQ(answers[1].error, 0);
  push(3, "d");
  EXPECT_EQ(answers.back().error, EPIPE);
}

TEST_F(StdinQueueTest, FailureReachesWhatWaits) {
  push(0, "abc");
  queue.wrote(1, answers);
  queue.fail(EPIPE, answers);
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].error, EPIPE);
  EXPECT_FALSE(queue.pending());
  push(1, "bc");
  EXPECT_EQ(answers.back().error, EPIPE);
  push(0, "a");
  EXPECT_EQ(answers.back().error, 0);
}

TEST_F(StdinQueueTest, RefusesOffsetsThatWrap) {
  push(UINT64_MAX, "ab");
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].error, EINVAL);
}

}  // namespace
}  // namespace nearbox::agent
