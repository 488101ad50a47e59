// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/push_stage.h"

#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "agent_test_util.h"

namespace nearbox::agent {
namespace {

class StageDirTest : public ::testing::Test {
 protected:
  RootPtr root() const {
    const auto path = dir_ / "root";
    std::filesystem::create_directory(path);
    return std::make_shared<Root>(
        Root{base::UniqueFd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)), path, {}});
  }
  // Whether a file can be made in it, and whether it has a name that others find.
  bool usable(StageDir& stage) const {
    const auto name = stage.scratch_name();
    base::UniqueFd file(::openat(stage.fd(), name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
    return file && ::unlinkat(stage.fd(), name.c_str(), 0) == 0;
  }
  Identity who_ = test::self();
  test::TempDir dir_;
};

TEST_F(StageDirTest, ASessionThatEndsLeavesItToOthers) {
  auto first = std::make_unique<StageDirs>(who_);
  ASSERT_TRUE(first->of(root()));
  StageDirs second(who_);
  const auto stays = second.of(root());
  ASSERT_TRUE(stays);
  first.reset();
  EXPECT_TRUE(usable(**stays));
}

TEST_F(StageDirTest, SessionsThatComeAndGo) {
  const auto come_and_go = [this] {
    for (int i = 0; i < 300; ++i) {
      StageDirs dirs(who_);
      const auto stage = dirs.of(root());
      ASSERT_TRUE(stage) << stage.error().message();
      EXPECT_TRUE(usable(**stage));
    }
  };
  std::jthread other(come_and_go);
  come_and_go();
}

}  // namespace
}  // namespace nearbox::agent
