// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/helper.h"

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>

#include "client/base/fault.h"

namespace nearbox::fs {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// Every test also as on a kernel without pidfd_open(2).
class HelperTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    std::ofstream(std::getenv("NEARBOX_FAULT_FILE")) << (GetParam() ? "fs.no_pidfd\n" : "");
    const auto end = Clock::now() + 10s;
    while (base::fault::active("fs.no_pidfd") != GetParam()) ASSERT_LT(Clock::now(), end);
  }
};

TEST_P(HelperTest, TellsHowAProgramEnded) {
  HelperRun run;
  run.argv = {"sh", "-c", "echo said >&2; exit 3"};
  const auto outcome = run_helper(run, Clock::now() + 20s);
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(outcome->status, 3);
  EXPECT_EQ(outcome->text, "said");
  run.argv = {"sh", "-c", "kill -9 $$"};
  EXPECT_EQ(run_helper(run, Clock::now() + 20s)->status, 128 + SIGKILL);
  EXPECT_EQ(run_child([] { return 7; }, Clock::now() + 20s), 7);
}

TEST_P(HelperTest, NobodyIsWaitedForBeyondTheDeadline) {
  HelperRun run;
  run.argv = {"sleep", "1000"};
  const auto begin = Clock::now();
  EXPECT_EQ(run_helper(run, begin + 100ms).error().as_errno(), ETIMEDOUT);
  EXPECT_EQ(run_child(
                [] {
                  ::pause();
                  return 0;
                },
                Clock::now() + 100ms),
            -1);
  EXPECT_LT(Clock::now() - begin, 10s);
}

INSTANTIATE_TEST_SUITE_P(Pidfd, HelperTest, ::testing::Bool());

}  // namespace
}  // namespace nearbox::fs

int main(int argc, char** argv) {
  char name[] = "/tmp/nearbox-helper-XXXXXX";
  const int fd = ::mkstemp(name);
  if (fd < 0) return 1;
  ::close(fd);
  ::setenv("NEARBOX_FAULT_FILE", name, 1);
  ::testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  ::unlink(name);
  return result;
}
