// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tests/unit/agent/agent_test_util.h"
#include "tools/agent/fs_ops.h"
#include "tools/agent/fs_path.h"

// Every way out of a root, with openat2 and without.
namespace nearbox::agent {
namespace {

class Paths : public ::testing::TestWithParam<bool> {
 protected:
  Paths() {
    if (GetParam()) {
      faults.set("agent.no_openat2\n");
      EXPECT_TRUE(faults.reaches("agent.no_openat2", "", true));
    } else {
      EXPECT_TRUE(faults.reaches("agent.no_openat2", "", false));
    }
    ::mkdir((dir / "root").c_str(), 0755);
    ::mkdir((dir / "out").c_str(), 0755);
    test::write_file(dir / "out/secret", "s");
    ::mkdir((dir / "root/sub").c_str(), 0755);
    test::write_file(dir / "root/sub/f", "f");
    ::symlink("../out", (dir / "root/up").c_str());
    ::symlink((dir / "out").c_str(), (dir / "root/abs").c_str());
    ::symlink("sub", (dir / "root/in").c_str());
    ::symlink("/proc/self/root", (dir / "root/magic").c_str());
    root.reset(::open((dir / "root").c_str(), O_PATH | O_DIRECTORY));
  }
  int error_of(const std::string& path, int flags = O_RDONLY) {
    auto fd = open_beneath(root.get(), path, flags);
    return fd ? 0 : fd.error().as_errno();
  }
  test::Faults faults;
  test::TempDir dir;
  base::UniqueFd root;
};

TEST_P(Paths, StayBelowTheRoot) {
  EXPECT_EQ(error_of("sub/f"), 0);
  EXPECT_EQ(error_of("", O_PATH | O_DIRECTORY), 0);
  for (const auto* bad :
       {"..", "../out/secret", "sub/../../out/secret", "/etc/passwd", "sub//f", "sub/", "./sub", "."}) {
    EXPECT_EQ(error_of(bad), EINVAL) << bad;
  }
  EXPECT_EQ(error_of(std::string("sub\0/f", 6)), EINVAL);
  EXPECT_EQ(error_of(std::string(5000, 'a')), EINVAL);
  EXPECT_EQ(error_of(std::string(300, 'a')), EINVAL);
  for (const auto* link : {"up/secret", "abs/secret", "in/f", "magic/etc/passwd", "up", "in", "abs"}) {
    EXPECT_EQ(error_of(link), ELOOP) << link;
  }
  EXPECT_EQ(error_of("none/f"), ENOENT);
  EXPECT_EQ(error_of("sub/f/g"), ENOTDIR);
  auto link = open_beneath(root.get(), "up", O_PATH);
  ASSERT_TRUE(link.ok());
  EXPECT_TRUE(S_ISLNK(stat_fd(link->get())->st_mode)) << "the link itself";
}

TEST_P(Paths, OperationsDoNotFollowLinks) {
  Identity who = test::self();
  RootTable roots(who);
  OrphanTable orphans;
  OpContext context{who, roots, orphans};
  const auto number = roots.open({dir / "root", false})->root;
  std::uint64_t id = 0;
  for (const auto kind :
       {wire::OpKind::kCreate, wire::OpKind::kMkdir, wire::OpKind::kSymlink, wire::OpKind::kUnlink,
        wire::OpKind::kWrite, wire::OpKind::kTruncate, wire::OpKind::kSetAttr, wire::OpKind::kRename}) {
    for (const auto* by : {"up/", "abs/"}) {
      wire::Op op;
      op.op_id = ++id;
      op.kind = kind;
      op.root = number;
      op.path = std::string(by) + "secret";
      op.path2 = "got";
      op.target = "t";
      op.set_mask = wire::kSetMode;
      op.uid = op.gid = wire::kOwnerUser;
      EXPECT_EQ(apply_op(context, op).error, ELOOP) << static_cast<int>(kind) << by;
    }
  }
  EXPECT_EQ(test::read_file(dir / "out/secret"), "s");
}

TEST_P(Paths, NamesMayHaveAnyBytes) {
  Identity who = test::self();
  RootTable roots(who);
  OrphanTable orphans;
  OpContext context{who, roots, orphans};
  const auto number = roots.open({dir / "root", false})->root;
  std::uint64_t id = 0;
  for (const std::string name :
       {"a b", "new\nline", "\xff\xfe", "tab\t", "-rf", "*", "\\", "\"", "...", ".. "}) {
    wire::Op op;
    op.op_id = ++id;
    op.kind = wire::OpKind::kCreate;
    op.root = number;
    op.path = "sub/" + name;
    op.mode = 0644;
    op.flags = O_EXCL;
    op.uid = op.gid = wire::kOwnerUser;
    EXPECT_EQ(apply_op(context, op).error, 0) << name;
    EXPECT_EQ(error_of("sub/" + name), 0) << name;
  }
}

TEST_P(Paths, AFifoDoesNotBlockAndADeviceIsNotOpened) {
  ASSERT_EQ(::mkfifo((dir / "root/p").c_str(), 0600), 0);
  auto place = open_place(root.get(), "p");
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(open_regular(*place, {}, O_RDONLY).error().as_errno(), ENXIO);
}

INSTANTIATE_TEST_SUITE_P(Agent, Paths, ::testing::Values(false, true),
                         [](const auto& mode) { return mode.param ? "ByWalking" : "ByOpenat2"; });

TEST(Roots, FollowLinksOnceAndHaveOneNumber) {
  test::TempDir dir;
  Identity who = test::self();
  who.home = dir / "home";
  ASSERT_EQ(::mkdir(who.home.c_str(), 0755), 0);
  ASSERT_EQ(::symlink("home", (dir / "link").c_str()), 0);
  RootTable roots(who);
  const auto home = roots.open({"~", false});
  ASSERT_TRUE(home.ok());
  EXPECT_EQ(home->path, std::filesystem::canonical(who.home).string());
  EXPECT_EQ(roots.open({dir / "link", false})->root, home->root);
  EXPECT_EQ(roots.open({"", false})->root, home->root);
  EXPECT_EQ(roots.open({"a/b", false}).error().as_errno(), ENOENT);
  const auto made = roots.open({"a/b", true});
  ASSERT_TRUE(made.ok());
  EXPECT_NE(made->root, home->root);
  EXPECT_EQ(made->path, home->path + "/a/b");
  EXPECT_EQ(roots.open({"~/a/b", true})->root, made->root);
  test::write_file(dir / "home/file", "");
  EXPECT_EQ(roots.open({"file", false}).error().as_errno(), ENOTDIR);
  EXPECT_EQ(roots.open({std::string("a\0b", 3), false}).error().as_errno(), EINVAL);
  EXPECT_EQ(roots.get(0).error().as_errno(), ESTALE);
  EXPECT_EQ(roots.get(77).error().as_errno(), ESTALE);
}

}  // namespace
}  // namespace nearbox::agent
