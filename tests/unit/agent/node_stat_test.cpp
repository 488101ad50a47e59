// SPDX-License-Identifier: Apache-2.0
// A file is told from a later one with its inode number.
#include "tools/agent/node_stat.h"

#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/agent/agent_test_util.h"
#include "tools/agent/fs_ops.h"
#include "tools/agent/fs_path.h"

namespace nearbox::agent {
namespace {

using wire::Op;
using wire::OpKind;

class Births : public ::testing::Test {
 protected:
  Births() {
    const auto reply = roots.open({dir.path, false});
    EXPECT_TRUE(reply.ok());
    root = reply->root;
  }
  Op op(OpKind kind, const std::string& path) {
    Op o;
    o.op_id = ++next;
    o.kind = kind;
    o.root = root;
    o.path = path;
    o.mode = 0644;
    o.uid = o.gid = wire::kOwnerUser;
    return o;
  }
  int error(const Op& o) { return apply_op(context, o).error; }
  Stat lstat(const std::string& name) {
    const auto st = stat_at(AT_FDCWD, (dir / name).c_str());
    EXPECT_TRUE(st.ok()) << name;
    return st ? *st : Stat{};
  }
  wire::NodeId node(const std::string& name) { return node_of(lstat(name)); }

  test::TempDir dir;
  Identity who = test::self();
  RootTable roots{who};
  OrphanTable orphans{8};
  OpContext context{who, roots, orphans};
  std::uint32_t root = 0;
  std::uint64_t next = 0;
};

// Every call that says which file it means.
std::vector<Op> calls_meaning(const std::function<Op(OpKind, const std::string&)>& op, wire::NodeId node) {
  std::vector<Op> all;
  for (const auto kind :
       {OpKind::kWrite, OpKind::kAppend, OpKind::kTruncate, OpKind::kSetAttr, OpKind::kFsync, OpKind::kLink,
        OpKind::kRename, OpKind::kCopyRange, OpKind::kUnlink}) {
    auto o = op(kind, "f");
    o.path2 = "to";
    o.data = wire::Bytes(3, std::byte{'x'});
    o.set_mask = wire::kSetMode;
    if (kind == OpKind::kCopyRange) o.path2 = "f", o.expect2 = node, o.offset = 1, o.size = 1;
    o.expect = node;
    all.push_back(o);
  }
  return all;
}

TEST_F(Births, AReusedNumberIsNotTheFileThatWasMeant) {
  EXPECT_EQ(error(op(OpKind::kCreate, "f")), 0);
  const auto now = node("f");
  if (now.birth == 0) GTEST_SKIP() << "no time of birth on this file system";
  auto before = now;  // what had its number before
  before.birth ^= 2;
  if (before.birth == 0) before.birth = 1;
  const auto make = [this](OpKind kind, const std::string& path) { return op(kind, path); };
  for (const auto& o : calls_meaning(make, before)) {
    EXPECT_EQ(error(o), ESTALE) << static_cast<int>(o.kind);
  }
  EXPECT_EQ(lstat("f").st_size, 0);
  // Who does not know the birth is taken at his word.
  for (const auto& o : calls_meaning(make, {now.dev, now.ino})) {
    EXPECT_EQ(error(o), 0) << static_cast<int>(o.kind);
    if (o.kind == OpKind::kRename) break;  // it lies elsewhere from here on
  }
}

TEST_F(Births, WithoutBirthsANumberIsAllThereIs) {
  test::Faults faults;
  faults.set("agent.no_birth\n");
  ASSERT_TRUE(faults.reaches("agent.no_birth", "", true));
  EXPECT_EQ(error(op(OpKind::kCreate, "f")), 0);
  auto meant = node("f");
  EXPECT_EQ(meant.birth, 0U);
  meant.birth = 7;
  auto o = op(OpKind::kWrite, "f");
  o.expect = meant;
  o.data = wire::Bytes(3, std::byte{'x'});
  EXPECT_EQ(error(o), 0);
  o.expect.ino += 1;
  EXPECT_EQ(error(o), ESTALE);
}

TEST(NodeStat, TellsWhatStatTells) {
  test::TempDir dir;
  for (const auto& path : {dir.path, std::string("/dev/null"), std::string("/proc/self/exe")}) {
    struct stat want {};
    ASSERT_EQ(::lstat(path.c_str(), &want), 0);
    const auto st = stat_at(AT_FDCWD, path.c_str());
    ASSERT_TRUE(st.ok()) << path;
    EXPECT_EQ(st->st_dev, want.st_dev);
    EXPECT_EQ(st->st_ino, want.st_ino);
    EXPECT_EQ(st->st_mode, want.st_mode);
    EXPECT_EQ(st->st_rdev, want.st_rdev);
    EXPECT_EQ(st->st_uid, want.st_uid);
    EXPECT_EQ(st->st_blocks, want.st_blocks);
    EXPECT_EQ(st->st_mtim.tv_nsec, want.st_mtim.tv_nsec);
    EXPECT_EQ(st->st_ctim.tv_sec, want.st_ctim.tv_sec);
  }
  EXPECT_EQ(stat_at(AT_FDCWD, (dir / "none").c_str()).error().as_errno(), ENOENT);
  EXPECT_EQ(stat_fd(-1).error().as_errno(), EBADF);
}

TEST(NodeStat, OverlaysHaveNoBirths) {
  constexpr std::uint64_t kOverlay = 0x794c7630, kExt4 = 0xef53;
  EXPECT_FALSE(births_hold(kOverlay));
  EXPECT_TRUE(births_hold(kExt4));
  BirthDevices devices;
  const auto start = std::chrono::steady_clock::now();
  int asked = 0;
  const auto as = [&](std::uint64_t type) {
    return [&asked, type] {
      ++asked;
      return type;
    };
  };
  constexpr std::uint64_t kDisk = 0x801, kNoDisk = 0x2a;  // makedev(8, 1), makedev(0, 42)
  EXPECT_FALSE(devices.holds(kDisk, start, as(0))) << "not found out";
  EXPECT_TRUE(devices.holds(kDisk, start, as(kExt4)));
  EXPECT_TRUE(devices.holds(kDisk, start + std::chrono::hours(1), as(kOverlay)));
  EXPECT_EQ(asked, 2);
  EXPECT_TRUE(devices.holds(kNoDisk, start, as(kExt4)));
  EXPECT_TRUE(devices.holds(kNoDisk, start + kBirthsRecheck / 2, as(kOverlay)));
  EXPECT_FALSE(devices.holds(kNoDisk, start + kBirthsRecheck, as(kOverlay)));
  EXPECT_EQ(asked, 4);
  for (std::uint64_t dev = 0x10000; dev < 0x10000 + 3 * kMaxBirthDevices; ++dev) {
    EXPECT_TRUE(devices.holds(dev, start, as(kExt4)));
  }
}

}  // namespace
}  // namespace nearbox::agent
