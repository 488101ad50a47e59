// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/fs_ops.h"

#include <csignal>
#include <linux/falloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include <gtest/gtest.h>

#include "tests/unit/agent/agent_test_util.h"
#include "tools/agent/fs_path.h"

namespace nearbox::agent {
namespace {

using wire::Op;
using wire::OpDone;
using wire::OpKind;

constexpr std::int64_t kWhen = 1'234'567'890'123'456'789;

class FsOps : public ::testing::Test {
 protected:
  FsOps() {
    EXPECT_EQ(::chmod(dir.path.c_str(), 0755), 0);
    const auto reply = roots.open({dir.path, false});
    EXPECT_TRUE(reply.ok());
    root = reply->root;
    root_node = wire::identity(reply->attr);
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
  OpDone run(const Op& o) { return apply_op(context, o); }
  int error(const Op& o) { return run(o).error; }
  static Op retry(Op o) {
    o.op_flags |= wire::kOpRetry;
    return o;
  }
  Stat lstat(const std::string& name) {
    const auto st = stat_at(AT_FDCWD, (dir / name).c_str());
    EXPECT_TRUE(st.ok()) << name;
    return st ? *st : Stat{};
  }
  bool exists(const std::string& name) {
    struct stat st {};
    return ::lstat((dir / name).c_str(), &st) == 0;
  }
  wire::NodeId node(const std::string& name) { return node_of(lstat(name)); }

  test::TempDir dir;
  Identity who = test::self();
  RootTable roots{who};
  OrphanTable orphans{8};
  OpContext context{who, roots, orphans};
  std::uint32_t root = 0;
  wire::NodeId root_node;
  std::uint64_t next = 0;
};

TEST_F(FsOps, CreateSetsModeTimeAndAttributes) {
  auto o = op(OpKind::kCreate, "f");
  o.mode = 0462;
  o.flags = O_EXCL;
  o.expect = root_node;
  o.mtime_ns = kWhen;
  const auto done = run(o);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(done.attr.mode, S_IFREG | 0462U);
  EXPECT_EQ(done.attr.mtime_ns, kWhen);
  auto shown = make_attr(lstat("f"));
  shown.version = done.attr.version;  // nobody counts here: another one at each look at a young file
  EXPECT_EQ(done.attr, shown);
  EXPECT_EQ(done.parent, make_attr(lstat("")));
  EXPECT_EQ(error(o), EEXIST);
  EXPECT_EQ(error(retry(o)), 0);
  auto shared = op(OpKind::kCreate, "f");
  EXPECT_EQ(run(shared).attr.ino, done.attr.ino);
  ASSERT_EQ(::truncate((dir / "f").c_str(), 5), 0);
  shared.flags = O_TRUNC | O_EXCL;
  EXPECT_EQ(error(retry(shared)), 0);
  EXPECT_EQ(lstat("f").st_size, 5);
  shared.flags = O_TRUNC;
  shared.mtime_ns = kWhen;
  const auto emptied = run(shared);
  EXPECT_EQ(emptied.attr.ino, done.attr.ino);
  EXPECT_EQ(emptied.attr.size, 0u);
  EXPECT_EQ(emptied.attr.mtime_ns, kWhen);
  EXPECT_EQ(emptied.attr.mode, done.attr.mode);
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0755), 0);
  EXPECT_EQ(error(retry(op(OpKind::kCreate, "d"))), EEXIST);
  EXPECT_EQ(error(op(OpKind::kCreate, "none/f")), ENOENT);
  EXPECT_EQ(error(op(OpKind::kCreate, "f/g")), ENOTDIR);
  EXPECT_EQ(error(op(OpKind::kCreate, "")), EEXIST);
  o = op(OpKind::kCreate, "g");
  o.expect = {1, 2};
  EXPECT_EQ(error(o), ESTALE);
  o = op(OpKind::kCreate, "g");
  o.root = 99;
  EXPECT_EQ(error(o), ESTALE);
}

TEST_F(FsOps, OwnersAreTheSandboxUsers) {
  if (::geteuid() != 0) {
    auto o = op(OpKind::kCreate, "f");
    o.uid = 4711;
    EXPECT_EQ(error(o), EPERM);
    EXPECT_FALSE(exists("f"));
    return;
  }
  who.uid = 1234;
  who.gid = 1235;
  for (const auto kind : {OpKind::kCreate, OpKind::kMkdir, OpKind::kMknod, OpKind::kSymlink}) {
    auto o = op(kind, "n" + std::to_string(static_cast<int>(kind)));
    o.mode = kind == OpKind::kMknod ? S_IFIFO | 0640 : 0640;
    o.target = "t";
    const auto done = run(o);
    EXPECT_EQ(done.error, 0);
    EXPECT_EQ(done.attr.uid, 1234U);
    EXPECT_EQ(done.attr.gid, 1235U);
    if (kind != OpKind::kSymlink) {
      EXPECT_EQ(done.attr.mode & 07777, 0640U);
    }
  }
  auto numeric = op(OpKind::kCreate, "numeric");
  numeric.uid = 7;
  numeric.gid = 8;
  EXPECT_EQ(run(numeric).attr.uid, 7U);
  EXPECT_EQ(lstat("numeric").st_gid, 8U);
  ASSERT_EQ(::mkdir((dir / "sg").c_str(), 0755), 0);
  ASSERT_EQ(::chown((dir / "sg").c_str(), 0, 99), 0);
  ASSERT_EQ(::chmod((dir / "sg").c_str(), 02755), 0);
  EXPECT_EQ(run(op(OpKind::kCreate, "sg/f")).attr.gid, 99U);
  const auto sub = run(op(OpKind::kMkdir, "sg/d"));
  EXPECT_EQ(sub.attr.gid, 99U);
  EXPECT_EQ(sub.attr.mode & 07777, 02644U);
}

// Applies `o` in a process that dies when the node is there and nothing else was done to it.
void crash_in_create(test::Faults& faults, OpContext& context, const Op& o, const std::string& more) {
  faults.set("agent.crash_in_create\n" + more);
  const pid_t child = ::fork();
  if (child == 0) {
    const struct rlimit no_core {};
    (void)::setrlimit(RLIMIT_CORE, &no_core);
    if (faults.reaches("agent.crash_in_create", o.path, true)) (void)apply_op(context, o);
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) << status;
  faults.set("");
  ASSERT_TRUE(faults.reaches("agent.crash_in_create", o.path, false));
}

TEST_F(FsOps, ACrashInACreationLeavesNothingOfRoots) {
  if (::geteuid() != 0) GTEST_SKIP() << "makes nothing for others";
  test::Faults faults;
  who.uid = 1234;
  who.gid = 1235;
  // Root may write here, the user may not.
  ASSERT_EQ(::mkdir((dir / "roots").c_str(), 0700), 0);
  for (const auto kind : {OpKind::kCreate, OpKind::kMkdir, OpKind::kMknod, OpKind::kSymlink}) {
    auto o = op(kind, "roots/n" + std::to_string(static_cast<int>(kind)));
    o.mode = (kind == OpKind::kMknod ? S_IFIFO : 0U) | (kind == OpKind::kMkdir ? 01751U : 04751U);
    o.target = "t";
    crash_in_create(faults, context, o, "");
    const auto st = lstat(o.path);
    EXPECT_EQ(st.st_uid, 1234U);
    EXPECT_EQ(st.st_gid, 1235U);
    if (kind != OpKind::kSymlink) {
      EXPECT_EQ(st.st_mode & 07777, o.mode & 07777U);
    }
  }
}

TEST_F(FsOps, ARepeatedCreationCompletesWhatACrashLeft) {
  if (::geteuid() != 0) GTEST_SKIP() << "makes nothing for others";
  test::Faults faults;
  who.uid = 1234;
  who.gid = 1235;
  for (const auto kind : {OpKind::kCreate, OpKind::kMkdir, OpKind::kMknod, OpKind::kSymlink}) {
    auto o = op(kind, "n" + std::to_string(static_cast<int>(kind)));
    o.mode = (kind == OpKind::kMknod ? S_IFIFO : 0U) | 0751;
    o.flags = O_EXCL;
    o.target = "t";
    crash_in_create(faults, context, o, "agent.no_fsuid\n");
    ASSERT_EQ(lstat(o.path).st_uid, 0U);
    const auto done = run(retry(o));
    EXPECT_EQ(done.error, 0);
    auto shown = make_attr(lstat(o.path));
    shown.version = done.attr.version;
    EXPECT_EQ(done.attr, shown);
    EXPECT_EQ(done.attr.uid, 1234U);
    EXPECT_EQ(done.attr.gid, 1235U);
    if (kind != OpKind::kSymlink) {
      EXPECT_EQ(done.attr.mode & 07777, 0751U);
    }
  }
  // What somebody changed since is not touched.
  test::write_file(dir / "full", "x");
  ASSERT_EQ(::chmod((dir / "full").c_str(), 0600), 0);
  EXPECT_EQ(run(retry(op(OpKind::kCreate, "full"))).attr.uid, 0U);
  test::write_file(dir / "open", "");
  ASSERT_EQ(::chmod((dir / "open").c_str(), 0644), 0);
  EXPECT_EQ(run(retry(op(OpKind::kCreate, "open"))).attr.uid, 0U);
}

// As write(2): the bytes that fit count, and only a call that writes nothing fails.
TEST_F(FsOps, WritesWhatFits) {
  struct rlimit before {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old = ::signal(SIGXFSZ, SIG_IGN);
  EXPECT_EQ(run(op(OpKind::kCreate, "f")).error, 0);
  auto write = op(OpKind::kWrite, "f");
  write.data.resize(3000, std::byte{1});
  auto append = op(OpKind::kAppend, "f");
  append.data.resize(3000, std::byte{2});
  std::vector<OpDone> done;
  for (const rlim_t limit : {1000, 1500}) {
    struct rlimit small = before;
    small.rlim_cur = limit;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const auto& call = limit == 1000 ? write : append;
    done.push_back(run(call));
    if (call.kind == OpKind::kAppend) done.push_back(run(append));
  }
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  (void)::signal(SIGXFSZ, old);
  EXPECT_EQ(done[0].error, 0);
  EXPECT_EQ(done[0].written, 1000U);
  EXPECT_EQ(done[0].attr.size, 1000U);
  EXPECT_EQ(done[1].error, 0);
  EXPECT_EQ(done[1].written, 500U);
  EXPECT_EQ(done[1].offset, 1000U);
  EXPECT_EQ(done[1].attr.size, 1500U);
  EXPECT_EQ(done[2].error, EFBIG);
}

TEST_F(FsOps, OwnersWithoutFsuid) {
  if (::geteuid() != 0) GTEST_SKIP() << "makes nothing for others";
  test::Faults faults;
  faults.set("agent.no_fsuid\n");
  ASSERT_TRUE(faults.reaches("agent.no_fsuid", "", true));
  who.uid = 1234;
  who.gid = 1235;
  for (const auto kind : {OpKind::kCreate, OpKind::kMkdir, OpKind::kMknod}) {
    auto o = op(kind, "n" + std::to_string(static_cast<int>(kind)));
    o.mode = (kind == OpKind::kMknod ? S_IFIFO : 0U) | 04751;
    const auto done = run(o);
    EXPECT_EQ(done.error, 0);
    EXPECT_EQ(done.attr.uid, 1234U);
    EXPECT_EQ(done.attr.gid, 1235U);
    EXPECT_EQ(done.attr.mode & 07777, 04751U);
  }
}

TEST_F(FsOps, MkdirMknodSymlinkAndTheirRepetition) {
  auto d = op(OpKind::kMkdir, "d");
  d.mode = 0751;
  EXPECT_EQ(run(d).attr.mode, S_IFDIR | 0751U);
  EXPECT_EQ(error(d), EEXIST);
  EXPECT_EQ(error(retry(d)), 0);
  auto fifo = op(OpKind::kMknod, "fifo");
  fifo.mode = S_IFIFO | 0600;
  EXPECT_EQ(run(fifo).attr.mode, S_IFIFO | 0600U);
  EXPECT_EQ(error(fifo), EEXIST);
  EXPECT_EQ(error(retry(fifo)), 0);
  fifo.mode = S_IFDIR | 0600;
  EXPECT_EQ(error(fifo), EINVAL);
  auto link = op(OpKind::kSymlink, "l");
  link.target = "../outside";
  link.mtime_ns = kWhen;
  EXPECT_EQ(run(link).attr.mtime_ns, kWhen);
  EXPECT_EQ(error(link), EEXIST);
  EXPECT_EQ(error(retry(link)), 0);
  link.target = "elsewhere";
  EXPECT_EQ(error(retry(link)), EEXIST);
  link.target = "";
  EXPECT_EQ(error(link), ENOENT);
}

TEST_F(FsOps, LinkChecksBothEnds) {
  test::write_file(dir / "a", "x");
  auto o = op(OpKind::kLink, "a");
  o.path2 = "b";
  o.expect = node("a");
  o.expect2 = root_node;
  const auto done = run(o);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(done.attr.nlink, 2U);
  EXPECT_EQ(error(o), EEXIST);
  EXPECT_EQ(error(retry(o)), 0);
  test::write_file(dir / "c", "y");
  o.path2 = "c";
  EXPECT_EQ(error(retry(o)), EEXIST);
  o.expect = {1, 1};
  EXPECT_EQ(error(o), ESTALE);
}

TEST_F(FsOps, UnlinkKeepsTheFileForThoseWhoHaveItOpen) {
  test::write_file(dir / "f", "hello");
  auto o = op(OpKind::kUnlink, "f");
  o.expect = {5, 5};
  EXPECT_EQ(error(o), ESTALE);
  o.expect = node("f");
  o.op_flags = wire::kOpKeep;
  const auto done = run(o);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(done.attr.nlink, 0U);
  EXPECT_EQ(done.attr.ino, o.expect.ino);
  EXPECT_FALSE(exists("f"));
  EXPECT_EQ(orphans.size(), 1U);

  auto write = op(OpKind::kWrite, "");
  write.orphan = o.op_id;
  write.offset = 5;
  write.data = {std::byte{'!'}};
  EXPECT_EQ(run(write).attr.size, 6U);
  auto append = op(OpKind::kAppend, "");
  append.orphan = o.op_id;
  append.data = write.data;
  EXPECT_EQ(run(append).offset, 6U);
  auto cut = op(OpKind::kTruncate, "");
  cut.orphan = o.op_id;
  cut.size = 3;
  EXPECT_EQ(run(cut).attr.size, 3U);
  auto attr = op(OpKind::kSetAttr, "");
  attr.orphan = o.op_id;
  attr.set_mask = wire::kSetMode | wire::kSetMtime;
  attr.mode = 0600;
  attr.mtime_ns = kWhen;
  EXPECT_EQ(run(attr).attr.mtime_ns, kWhen);
  auto sync = op(OpKind::kFsync, "");
  sync.orphan = o.op_id;
  EXPECT_EQ(error(sync), 0);
  for (auto* one :
       {&write, &append, &cut, &attr, &sync}) {  // of another session: the number is, the file is not
    one->expect = root_node;
    EXPECT_EQ(error(*one), ESTALE);
    one->expect = o.expect;
    EXPECT_EQ(error(*one), 0);
  }
  orphans.forget(o.op_id);
  EXPECT_EQ(error(write), ESTALE);
  EXPECT_EQ(error(op(OpKind::kUnlink, "f")), ENOENT);
  EXPECT_EQ(error(retry(op(OpKind::kUnlink, "f"))), 0);
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0755), 0);
  EXPECT_EQ(error(op(OpKind::kUnlink, "d")), EISDIR);
}

TEST_F(FsOps, AFullOrphanTableRefusesTheUnlink) {
  for (int i = 0; i < 9; ++i) {
    const auto name = "f" + std::to_string(i);
    test::write_file(dir / name, "x");
    auto o = op(OpKind::kUnlink, name);
    o.op_flags = wire::kOpKeep;
    EXPECT_EQ(error(o), i < 8 ? 0 : EMFILE);
    EXPECT_EQ(exists(name), i == 8);
  }
}

TEST_F(FsOps, RmdirAndItsErrors) {
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0755), 0);
  test::write_file(dir / "d/f", "");
  EXPECT_EQ(error(op(OpKind::kRmdir, "d")), ENOTEMPTY);
  EXPECT_EQ(error(op(OpKind::kRmdir, "d/f")), ENOTDIR);
  EXPECT_EQ(error(op(OpKind::kRmdir, "")), EBUSY);
  ASSERT_EQ(::unlink((dir / "d/f").c_str()), 0);
  EXPECT_EQ(run(op(OpKind::kRmdir, "d")).parent.ino, root_node.ino);
  EXPECT_EQ(error(op(OpKind::kRmdir, "d")), ENOENT);
  EXPECT_EQ(error(retry(op(OpKind::kRmdir, "d"))), 0);
}

TEST_F(FsOps, RenameWithFlagsParentsAndKeep) {
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0755), 0);
  test::write_file(dir / "a", "A");
  test::write_file(dir / "d/b", "B");
  auto o = op(OpKind::kRename, "a");
  o.path2 = "d/b";
  o.expect = node("a");
  o.expect2 = node("d");
  o.flags = RENAME_NOREPLACE;
  EXPECT_EQ(error(o), EEXIST);
  o.flags = RENAME_EXCHANGE;
  auto done = run(o);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(test::read_file(dir / "a"), "B");
  EXPECT_EQ(done.parent.ino, root_node.ino);
  EXPECT_EQ(done.parent2.ino, o.expect2.ino);
  EXPECT_EQ(error(o), ESTALE);
  EXPECT_EQ(error(retry(o)), 0) << "already exchanged";
  EXPECT_EQ(test::read_file(dir / "a"), "B");

  auto over = op(OpKind::kRename, "a");
  over.path2 = "d/b";
  over.expect = node("a");
  over.op_flags = wire::kOpKeep;
  done = run(over);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(done.attr.ino, over.expect.ino);
  EXPECT_EQ(test::read_file(dir / "d/b"), "B");
  char byte = 0;
  ASSERT_EQ(::pread((*orphans.get(over.op_id, {}))->get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'A');
  EXPECT_EQ(error(retry(over)), 0);
  EXPECT_EQ(error(over), ENOENT);
  over.flags = 1U << 2U;
  EXPECT_EQ(error(over), EINVAL) << "whiteouts are not for clients";
  auto missing = op(OpKind::kRename, "nope");
  missing.path2 = "nope2";
  EXPECT_EQ(error(retry(missing)), ENOENT);
}

TEST_F(FsOps, WriteAppendTruncateFallocate) {
  test::write_file(dir / "f", "0123456789");
  auto w = op(OpKind::kWrite, "f");
  w.offset = 4;
  w.data = {std::byte{'a'}, std::byte{'b'}};
  w.mtime_ns = kWhen;
  w.expect = node("f");
  auto done = run(w);
  EXPECT_EQ(done.written, 2U);
  EXPECT_EQ(done.attr.mtime_ns, kWhen);
  EXPECT_EQ(test::read_file(dir / "f"), "0123ab6789");
  w.expect = {1, 1};
  EXPECT_EQ(error(w), ESTALE);
  w.expect = {};
  w.offset = ~0ULL;
  EXPECT_EQ(error(w), EFBIG);

  auto a = op(OpKind::kAppend, "f");
  a.data = {std::byte{'X'}};
  a.offset = 3;  // where the client believed it was
  done = run(a);
  EXPECT_EQ(done.offset, 10U);
  EXPECT_EQ(done.written, 1U);
  a.offset = 10;
  EXPECT_EQ(run(retry(a)).offset, 10U);
  EXPECT_EQ(test::read_file(dir / "f"), "0123ab6789X");
  EXPECT_EQ(run(a).offset, 11U);

  auto t = op(OpKind::kTruncate, "f");
  t.size = 3;
  t.mtime_ns = kWhen;
  EXPECT_EQ(run(t).attr.size, 3U);
  EXPECT_EQ(lstat("f").st_mtim.tv_sec, kWhen / 1'000'000'000);

  auto fa = op(OpKind::kFallocate, "f");
  fa.size = 8192;
  const int got = error(fa);
  EXPECT_TRUE(got == 0 || got == EOPNOTSUPP);
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0755), 0);
  EXPECT_EQ(error(op(OpKind::kWrite, "d")), EISDIR);
  ASSERT_EQ(::symlink("f", (dir / "l").c_str()), 0);
  EXPECT_EQ(error(op(OpKind::kWrite, "l")), ELOOP);
  ASSERT_EQ(::mkfifo((dir / "p").c_str(), 0600), 0);
  EXPECT_EQ(error(op(OpKind::kTruncate, "p")), ENXIO);
}

TEST_F(FsOps, AReadOnlyFileOfOursTakesItsBytes) {
  auto c = op(OpKind::kCreate, "ro");
  c.mode = 0444;
  ASSERT_EQ(error(c), 0);
  auto w = op(OpKind::kWrite, "ro");
  w.data = {std::byte{'x'}};
  const auto done = run(w);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(done.attr.mode & 07777, 0444U);
}

TEST_F(FsOps, SetAttrByMask) {
  test::write_file(dir / "f", "x");
  auto o = op(OpKind::kSetAttr, "f");
  o.set_mask = wire::kSetMode | wire::kSetMtime | wire::kSetAtime;
  o.mode = 0701;
  o.mtime_ns = kWhen;
  o.atime_ns = -1;
  auto done = run(o);
  EXPECT_EQ(done.attr.mode & 07777, 0701U);
  EXPECT_EQ(done.attr.mtime_ns, kWhen);
  EXPECT_EQ(lstat("f").st_atim.tv_sec, -1);
  EXPECT_EQ(lstat("f").st_atim.tv_nsec, 999'999'999);
  o.set_mask = wire::kSetMtimeNow;
  EXPECT_GT(run(o).attr.mtime_ns, kWhen);
  ASSERT_EQ(::symlink("f", (dir / "l").c_str()), 0);
  auto l = op(OpKind::kSetAttr, "l");
  l.set_mask = wire::kSetMtime;
  l.mtime_ns = kWhen;
  EXPECT_EQ(run(l).attr.mtime_ns, kWhen);
  EXPECT_NE(lstat("f").st_mtim.tv_sec, kWhen / 1'000'000'000) << "followed the symlink";
  l.set_mask = wire::kSetMode;
  EXPECT_EQ(error(l), EOPNOTSUPP);
  auto r = op(OpKind::kSetAttr, "");
  r.set_mask = wire::kSetMode;
  r.mode = 0700;
  EXPECT_EQ(run(r).attr.mode & 07777, 0700U);
  if (::geteuid() == 0) {
    who.uid = 1234;
    auto own = op(OpKind::kSetAttr, "f");
    own.set_mask = wire::kSetUid | wire::kSetMode;
    own.mode = 04755;
    done = run(own);
    EXPECT_EQ(done.attr.uid, 1234U);
    EXPECT_EQ(done.attr.mode & 07777, 04755U) << "the owner is set before the mode";
  }
}

TEST_F(FsOps, FsyncOfEveryType) {
  test::write_file(dir / "f", "x");
  ASSERT_EQ(::symlink("f", (dir / "l").c_str()), 0);
  ASSERT_EQ(::mkfifo((dir / "p").c_str(), 0600), 0);
  for (const auto* name : {"f", "", "l", "p"}) EXPECT_EQ(error(op(OpKind::kFsync, name)), 0) << name;
  auto data = op(OpKind::kFsync, "f");
  data.flags = 1;
  EXPECT_EQ(error(data), 0);
  EXPECT_EQ(error(op(OpKind::kFsync, "none")), ENOENT);
}

TEST_F(FsOps, UserXattrsOnly) {
  test::write_file(dir / "f", "x");
  auto s = op(OpKind::kSetXattr, "f");
  s.target = "user.k";
  s.data = {std::byte{1}, std::byte{0}};
  const int got = error(s);
  if (got == EOPNOTSUPP) GTEST_SKIP() << "no xattrs on this file system";
  EXPECT_EQ(got, 0);
  s.flags = XATTR_CREATE;
  EXPECT_EQ(error(s), EEXIST);
  EXPECT_EQ(error(retry(s)), 0);
  s.data = {};
  EXPECT_EQ(error(retry(s)), EEXIST);
  s.target = "security.capability";
  EXPECT_EQ(error(s), EOPNOTSUPP);
  auto r = op(OpKind::kRemoveXattr, "f");
  r.target = "user.k";
  EXPECT_EQ(error(r), 0);
  EXPECT_EQ(error(r), ENODATA);
  EXPECT_EQ(error(retry(r)), 0);
  r.target = "trusted.x";
  EXPECT_EQ(error(r), ENODATA);
}

TEST_F(FsOps, CopyRange) {
  test::write_file(dir / "a", "0123456789");
  test::write_file(dir / "b", "..........");
  auto o = op(OpKind::kCopyRange, "a");
  o.path2 = "b";
  o.offset = 2;
  o.rdev = 4;
  o.size = 3;
  const auto done = run(o);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(done.written, 3U);
  EXPECT_EQ(test::read_file(dir / "b"), "....234...");
  EXPECT_EQ(done.attr.ino, node("b").ino);
  o.size = 100;
  o.expect2 = node("b");
  EXPECT_EQ(run(o).written, 8U);
  o.expect2 = node("a");
  EXPECT_EQ(error(o), ESTALE) << "another file lies at path2";
  o.expect2 = {};
  o.path2 = "none";
  EXPECT_EQ(error(o), ENOENT);
  o.path2 = "a";
  o.rdev = 3;
  o.size = 4;
  EXPECT_EQ(error(o), EINVAL) << "overlapping";
}

TEST_F(FsOps, CopyRangeWithoutTheCall) {
  test::Faults faults;
  faults.set("agent.no_copy_file_range\n");
  ASSERT_TRUE(faults.reaches("agent.no_copy_file_range", "", true));
  test::write_file(dir / "a", "0123456789");
  test::write_file(dir / "b", "..........");
  auto o = op(OpKind::kCopyRange, "a");
  o.path2 = "b";
  o.offset = 2;
  o.rdev = 4;
  o.size = 100;
  const auto done = run(o);
  EXPECT_EQ(done.error, 0);
  EXPECT_EQ(done.written, 8U);
  EXPECT_EQ(test::read_file(dir / "b"), "....23456789");
}

TEST_F(FsOps, UnknownKindsAreRefused) { EXPECT_EQ(error(op(static_cast<OpKind>(99), "f")), ENOSYS); }

}  // namespace
}  // namespace nearbox::agent
