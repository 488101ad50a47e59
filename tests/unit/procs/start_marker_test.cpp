// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/start_marker.h"

#include <filesystem>

#include <gtest/gtest.h>

#include "tests/unit/procs/proc_test_util.h"

namespace nearbox::agent {
namespace {

std::time_t fake_now = 0;
std::time_t fake_clock() { return fake_now; }

std::size_t files_in(const std::string& dir) {
  const auto all = std::filesystem::directory_iterator(dir);
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

class StartMarkersTest : public ::testing::Test {
 protected:
  StartMarkersTest() { fake_now = std::time(nullptr); }
  test::TempDir home;
  const std::string dir = home / "started";
};

TEST_F(StartMarkersTest, ACommandIsClaimedOnceOverAgents) {
  StartMarkers first(dir);
  EXPECT_TRUE(first.claim(7));
  StartMarkers second(dir);  // after the first died
  EXPECT_EQ(second.claim(7).error().as_errno(), ESTALE);
  EXPECT_TRUE(second.claim(8));
  second.drop(7);
  EXPECT_TRUE(second.claim(7));
  EXPECT_EQ(files_in(dir), 2U);
}

TEST_F(StartMarkersTest, MarksOfALongLivedAgentGoAfterADay) {
  StartMarkers marks(dir, fake_clock);
  ASSERT_TRUE(marks.claim(1));
  fake_now += kKeepStartMark;
  ASSERT_TRUE(marks.claim(2));
  EXPECT_EQ(marks.size(), 2U);
  fake_now += 1;
  ASSERT_TRUE(marks.claim(3));
  EXPECT_EQ(marks.size(), 2U);
  EXPECT_EQ(files_in(dir), 2U);
  // And so do those that a dead one left.
  fake_now += 2 * kKeepStartMark;
  StartMarkers next(dir, fake_clock);
  EXPECT_EQ(next.size(), 0U);
  EXPECT_EQ(files_in(dir), 0U);
}

TEST_F(StartMarkersTest, TheOldestGoAboveTheLimit) {
  StartMarkers marks(dir, fake_clock);
  for (std::uint64_t proc = 0; proc < kMaxStartMarks + 10; ++proc) {
    if (proc == 10) fake_now += 1;
    ASSERT_TRUE(marks.claim(proc));
  }
  EXPECT_EQ(marks.size(), kMaxStartMarks);
  EXPECT_EQ(files_in(dir), kMaxStartMarks);
  EXPECT_TRUE(marks.claim(3)) << "one of the oldest";
  EXPECT_EQ(marks.claim(kMaxStartMarks).error().as_errno(), ESTALE);
}

TEST_F(StartMarkersTest, FilesOfOthersStay) {
  std::filesystem::create_directory(dir);
  for (const char* name : {"readme", "00000000000000zz", "0"}) {
    std::ofstream(dir + "/" + name) << "x";
    std::filesystem::last_write_time(dir + "/" + name, std::filesystem::file_time_type{});
  }
  StartMarkers marks(dir);
  EXPECT_EQ(marks.size(), 0U);
  EXPECT_EQ(files_in(dir), 3U);
}

}  // namespace
}  // namespace nearbox::agent
