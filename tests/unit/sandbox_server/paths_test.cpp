// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tools/sandbox_server/init.h"
#include "tools/sandbox_server/users.h"

namespace nearbox::sandbox_server {
namespace {

TEST(ResolvePath, HomeRelativeAbsolute) {
  const User user{"user", 1000, 1000, "/home/user", {}, false, false};
  EXPECT_EQ(*resolve_path("", user), "/home/user");
  EXPECT_EQ(*resolve_path("~", user), "/home/user");
  EXPECT_EQ(*resolve_path("~/a", user), "/home/user/a");
  EXPECT_EQ(*resolve_path("a/../b", user), "/home/user/a/../b");
  EXPECT_EQ(*resolve_path("/x//y", user), "/x//y");
  EXPECT_EQ(resolve_path("~other/a", user).error().as_errno(), EINVAL);
  EXPECT_EQ(resolve_path(std::string_view("a\0b", 3), user).error().as_errno(), EINVAL);
}

TEST(BindPath, OnlyCleanPathsOutsideTheSystem) {
  for (const char* good : {"/srv/work space", "/home/a/project", "/build/x", "/tmp/y", "/data"})
    EXPECT_TRUE(valid_bind_path(good)) << good;
  for (const char* bad : {"", "/", "relative", "/a/", "/a//b", "/a/../b", "/a/./b", "/..", "/etc", "/etc/x",
                          "/proc/1", "/usr/bin", "/home", "/home/user", "/run/x", "/dev/shm"}) {
    EXPECT_FALSE(valid_bind_path(bad)) << bad;
  }
}

TEST(BindTarget, LinksNeitherLeaveTheRootNorReachTheSystem) {
  std::string dir = ::testing::TempDir() + "bind-target-XXXXXX";
  ASSERT_NE(::mkdtemp(dir.data()), nullptr);
  namespace fs = std::filesystem;
  fs::create_directories(dir + "/root/etc");
  fs::create_directories(dir + "/root/srv");
  fs::create_directories(dir + "/outside");
  const auto link = [&](const std::string& to, const std::string& at) {
    fs::create_symlink(to, dir + "/root/" + at);
  };
  link("/etc", "srv/etc");
  link(dir + "/outside", "srv/out");
  link("../../outside", "srv/up");
  link("/srv/real", "srv/good");
  link("/", "srv/whole");
  fs::create_directories(dir + "/root/srv/real");
  const base::UniqueFd root(::open((dir + "/root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(root);
  EXPECT_TRUE(make_bind_target(root.get(), "/srv/a b/c"));
  EXPECT_TRUE(fs::is_directory(dir + "/root/srv/a b/c"));
  EXPECT_TRUE(make_bind_target(root.get(), "/srv/good/x"));
  EXPECT_TRUE(fs::is_directory(dir + "/root/srv/real/x"));
  for (const char* bad : {"/srv/etc", "/srv/etc/new", "/srv/whole", "/srv/whole/etc", "/srv/whole/usr"})
    EXPECT_EQ(make_bind_target(root.get(), bad).error().as_errno(), EACCES) << bad;
  EXPECT_FALSE(make_bind_target(root.get(), "/srv/out/x"));
  EXPECT_FALSE(make_bind_target(root.get(), "/srv/up/x"));
  EXPECT_TRUE(fs::is_empty(dir + "/root/etc"));
  EXPECT_TRUE(fs::is_empty(dir + "/outside"));
  EXPECT_FALSE(fs::exists(dir + "/root/usr"));
  fs::remove_all(dir);
}

TEST(Users, PlainModeHasTwoNames) {
  const Users users(IsolationMode::kPlain, "/data/x/home");
  EXPECT_EQ(users.find("user")->home, "/data/x/home");
  EXPECT_EQ(users.find("root")->uid, ::geteuid());
  EXPECT_FALSE(users.find("nobody"));
}

TEST(Users, OneMappedUser) {
  const Users users(IsolationMode::kUserns, "");
  EXPECT_TRUE(users.find("user")->nested_userns);
  EXPECT_EQ(users.find("user")->uid, kUserUid);
  EXPECT_FALSE(users.find("root")->nested_userns);
  EXPECT_FALSE(users.find("daemon"));
}

TEST(InitConfig, RoundTripAndRefusal) {
  InitConfig config;
  config.id = "iabc";
  config.dir = "/data/iabc";
  config.mode = IsolationMode::kUserns;
  config.token = "secret";
  config.envs = {{"A", "b\nc"}};
  config.binds = {"/srv/x"};
  const auto back = decode_init_config(encode_init_config(config));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->envs, config.envs);
  EXPECT_EQ(back->binds, config.binds);
  EXPECT_EQ(back->mode, config.mode);
  EXPECT_FALSE(decode_init_config("{}"));
  EXPECT_FALSE(decode_init_config("no json"));
}

}  // namespace
}  // namespace nearbox::sandbox_server
