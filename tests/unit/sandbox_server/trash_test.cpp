// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/trash.h"

#include <atomic>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "client/base/fault.h"
#include "client/base/unique_fd.h"

namespace nearbox::sandbox_server {
namespace {

namespace stdfs = std::filesystem;
using Clock = std::chrono::steady_clock;

class TrashTest : public ::testing::Test {
 protected:
  TrashTest() {
    std::string name = (stdfs::temp_directory_path() / "nearbox-trash-XXXXXX").string();
    dir = ::mkdtemp(name.data());
    stdfs::create_directory(dir / "trash");
    stdfs::create_directory(dir / "in");
    fd.reset(::open((dir / "in").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  ~TrashTest() override {
    std::error_code ignored;
    stdfs::remove_all(dir, ignored);
  }
  static void write(const stdfs::path& path) { std::ofstream(path) << "x"; }
  static bool eventually(const std::function<bool()>& condition) {
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (Clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  stdfs::path dir;
  base::UniqueFd fd;  // of "in"
  base::Logger log{2, base::LogLevel::kOff};
};

TEST_F(TrashTest, RemovesATreeAndFollowsNoLink) {
  stdfs::create_directories(dir / "outside/kept");
  write(dir / "outside/kept/f");
  ASSERT_EQ(::chmod((dir / "outside").c_str(), 0500), 0);
  stdfs::create_directories(dir / "in/t/a/b");
  write(dir / "in/t/a/b/f");
  stdfs::create_directory_symlink(dir / "outside", dir / "in/t/link");
  ASSERT_EQ(::chmod((dir / "in/t/a/b").c_str(), 0000), 0);
  ASSERT_EQ(::chmod((dir / "in/t/a").c_str(), 0500), 0);
  EXPECT_TRUE(remove_tree(fd.get(), "t"));
  EXPECT_FALSE(stdfs::exists(dir / "in/t"));
  EXPECT_TRUE(stdfs::exists(dir / "outside/kept/f"));
  struct stat st {};
  ASSERT_EQ(::stat((dir / "outside").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0500U);
  EXPECT_TRUE(remove_tree(fd.get(), "none"));
  stdfs::create_directory_symlink(dir / "outside", dir / "in/only-a-link");
  EXPECT_TRUE(remove_tree(fd.get(), "only-a-link"));
  EXPECT_TRUE(stdfs::exists(dir / "outside/kept/f"));
  ASSERT_EQ(::chmod((dir / "outside").c_str(), 0700), 0);
}

// Code of a sandbox exchanges a directory that refuses for a link while it is opened up.
TEST_F(TrashTest, AnExchangedNameOpensNothingElseUp) {
  stdfs::create_directories(dir / "outside");
  ASSERT_EQ(::chmod((dir / "outside").c_str(), 0511), 0);
  std::atomic<bool> stop{false};
  std::jthread exchange([&] {
    const auto link = (dir / "in/link").string();
    const auto name = (dir / "in/t/d").string();
    (void)::symlink((dir / "outside").c_str(), link.c_str());
    while (!stop.load()) (void)::renameat2(AT_FDCWD, link.c_str(), AT_FDCWD, name.c_str(), RENAME_EXCHANGE);
  });
  for (int i = 0; i < 200; ++i) {
    std::error_code taken;
    stdfs::create_directories(dir / "in/t/d", taken);
    // By descriptor here too: the name may be the link by now.
    const base::UniqueFd d(::open((dir / "in/t/d").c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (d) (void)::fchmod(d.get(), 0000);
    (void)remove_tree(fd.get(), "t");
  }
  stop.store(true);
  exchange.join();
  struct stat st {};
  ASSERT_EQ(::stat((dir / "outside").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0511U);
}

TEST_F(TrashTest, NoDepthIsTooDeep) {
  constexpr int kDepth = 400;
  base::UniqueFd at(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  for (int i = 0; i < kDepth; ++i) {
    ASSERT_EQ(::mkdirat(at.get(), "deep", 0755), 0);
    at.reset(::openat(at.get(), "deep", O_PATH | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(at);
  }
  at.reset();
  EXPECT_TRUE(remove_tree(fd.get(), "deep"));
  EXPECT_TRUE(stdfs::is_empty(dir / "in"));
}

TEST_F(TrashTest, TakesAtOnceAndRemovesLater) {
  write(dir / "faults");
  base::fault::set_file((dir / "faults").string());
  std::ofstream(dir / "faults") << "sandbox_server.hold_removal\n";
  ASSERT_TRUE(eventually([] { return base::fault::active("sandbox_server.hold_removal"); }));
  Trash trash((dir / "trash").string(), log);
  for (const char* name : {"one", "two"}) {
    stdfs::create_directories(dir / "in" / name / "sub");
    EXPECT_TRUE(trash.take((dir / "in" / name).string()));
    EXPECT_FALSE(stdfs::exists(dir / "in" / name));
  }
  EXPECT_FALSE(trash.take((dir / "in/none").string()));
  EXPECT_EQ(trash.waiting(), 2U);
  EXPECT_TRUE(stdfs::exists(dir / "trash/one/sub"));
  std::ofstream(dir / "faults") << "";
  EXPECT_TRUE(eventually([&] { return trash.waiting() == 0; }));
  EXPECT_TRUE(stdfs::is_empty(dir / "trash"));
  // What is left when it ends goes with it.
  stdfs::create_directories(dir / "in/three/sub");
  EXPECT_TRUE(trash.take((dir / "in/three").string()));
  trash.stop();
  EXPECT_TRUE(stdfs::is_empty(dir / "trash"));
  stdfs::create_directories(dir / "trash/old/sub");
  EXPECT_EQ(trash.empty_now(), 1U);
  base::fault::set_file("");
}

}  // namespace
}  // namespace nearbox::sandbox_server
