// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/surroundings.h"

#include <filesystem>

#include <gtest/gtest.h>

#include "client/wire/messages.h"
#include "tests/unit/agent/agent_test_util.h"

// With directories in the kernel's place; the kernel's own: tests/integration/test_surroundings.py.
namespace nearbox::agent {
namespace {

namespace stdfs = std::filesystem;

class SurroundingsTest : public ::testing::Test {
 protected:
  void proc(const std::string& cgroup, const std::string& oom) {
    stdfs::create_directories(dir / "proc/self");
    test::write_file(dir / "proc/self/cgroup", cgroup);
    test::write_file(dir / "proc/self/oom_score_adj", oom);
  }
  void group(const std::string& name) {
    stdfs::create_directories(dir / ("cgroup" + name));
    test::write_file(dir / ("cgroup" + name + "/cgroup.procs"), "");
  }
  std::string members(const std::string& name) {
    return test::read_file(dir / ("cgroup" + name + "/cgroup.procs"));
  }
  Surroundings leave() { return leave_limits({dir / "proc", dir / "cgroup"}); }

  test::TempDir dir;
  const std::string me = std::to_string(::getpid());
};

TEST_F(SurroundingsTest, UnifiedGoesToTheRoot) {
  proc("0::/user/build\n", "300\n");
  group("");
  test::write_file(dir / "cgroup/cgroup.controllers", "cpu memory\n");
  const auto around = leave();
  EXPECT_EQ(members(""), me);
  EXPECT_EQ(around.features, wire::kFeatureOutOfCgroup | wire::kFeatureOomLowered);
  EXPECT_EQ(around.cgroup_procs, dir / "cgroup/user/build/cgroup.procs") << "commands go back into it";
  EXPECT_EQ(test::read_file(dir / "proc/self/oom_score_adj").substr(0, 4), "-900");
}

TEST_F(SurroundingsTest, UnifiedGoesBesideWhereTheRootRefuses) {
  proc("0::/build\n", "0\n");
  group("/nearbox");
  stdfs::create_directories(dir / "cgroup/cgroup.procs");  // cannot be written
  test::write_file(dir / "cgroup/cgroup.controllers", "");
  EXPECT_NE(leave().features & wire::kFeatureOutOfCgroup, 0U);
  EXPECT_EQ(members("/nearbox"), me);
}

TEST_F(SurroundingsTest, VersionOneLeavesEachController) {
  proc("3:memory:/build\n2:cpu:/build\n0::/build\n", "0\n");
  for (const char* name : {"/cpu", "/memory", "/pids", "/unified"}) group(name);
  EXPECT_NE(leave().features & wire::kFeatureOutOfCgroup, 0U);
  for (const char* name : {"/cpu", "/memory", "/pids", "/unified"}) EXPECT_EQ(members(name), me) << name;
}

TEST_F(SurroundingsTest, WhatIsRefusedIsNotClaimed) {
  const auto around = leave();  // neither tree is there
  EXPECT_EQ(around.features, 0U);
  EXPECT_EQ(around.cgroup_procs, "");
}

TEST_F(SurroundingsTest, AnOomScoreThatIsLowAlreadyStays) {
  proc("0::/\n", "-1000\n");
  EXPECT_EQ(leave().features, wire::kFeatureOomLowered);
  EXPECT_EQ(test::read_file(dir / "proc/self/oom_score_adj"), "-1000\n");
}

}  // namespace
}  // namespace nearbox::agent
