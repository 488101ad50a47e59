// SPDX-License-Identifier: Apache-2.0
#include "sync/scan/scan.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <map>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "client/base/fault.h"
#include "client/base/unique_fd.h"
#include "sync/scan/file_content.h"
#include "tests/unit/sync/temp_tree.h"

namespace nearbox::scan {
namespace {

using test::plain_options;
using test::TempTree;

#if defined(NEARBOX_FAULT_POINTS)
const std::string& fault_file() {
  static const TempTree directory;
  static const std::string path = directory.at("faults").string();
  return path;
}
// Before the first question: the variable is read once.
const int kFaultFileSet = ::setenv("NEARBOX_FAULT_FILE", fault_file().c_str(), 1);

// Makes a fault point active while it lives.
class Fault {
 public:
  explicit Fault(std::string point, std::string subject = "")
      : point_(std::move(point)), subject_(std::move(subject)) {
    set(point_ + (subject_.empty() ? "" : " " + subject_) + "\n", true);
  }
  ~Fault() { set("", false); }
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;

 private:
  void set(const std::string& text, bool wanted) {
    std::ofstream(fault_file(), std::ios::trunc) << text;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (base::fault::active(point_, subject_) != wanted) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << point_;
    }
  }
  std::string point_;
  std::string subject_;
};
#endif

class ScanTest : public ::testing::Test {
 protected:
  ScanResult scan_it(ignore::RuleOptions rules = plain_options()) {
    auto loaded = ignore::Rules::load(tree.root(), std::move(rules));
    EXPECT_TRUE(loaded);
    auto result = scan(*loaded, *index, options, {});
    EXPECT_TRUE(result) << result.error().message();
    return result ? *std::move(result) : ScanResult{};
  }
  // As if all changes had been pushed.
  void commit(const ScanResult& result) {
    index::Batch batch;
    for (const auto& change : result.changes) {
      if (change.kind == ChangeKind::kDeleted || change.kind == ChangeKind::kLeftOut) {
        batch.remove(change.path);
      } else {
        batch.put(change.path, change.now);
      }
    }
    ASSERT_TRUE(index->apply(batch));
    ASSERT_TRUE(index->apply(result.learnt));
  }
  // Scans and commits until nothing is racy any more: time has to pass for that.
  void settle() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < deadline) {
      const auto result = scan_it();
      commit(result);
      if (result.changes.empty() && result.counts.hashed_files == 0) return;
    }
    FAIL() << "always something to read";
  }
  static std::string text(const ScanResult& result) {
    static constexpr const char* kKinds[] = {"added", "modified", "mode", "deleted", "left-out"};
    std::string out;
    for (const auto& c : result.changes)
      out += std::string(kKinds[static_cast<int>(c.kind)]) + " " + c.path + "\n";
    return out;
  }
  static std::string problems(const ScanResult& result) {
    std::string out;
    for (const auto& p : result.problems) out += std::string(name_of(p.kind)) + " " + p.path + "\n";
    return out;
  }

  TempTree tree;
  TempTree state;
  ScanOptions options;
  std::unique_ptr<index::Index> index = *index::Index::open(state.at("index").string(), {tree.root(), "r"});
};

TEST_F(ScanTest, TellsWhatIsThereAndWhatChanged) {
  tree.write("a.txt", "one");
  tree.write("dir/b", "two");
  tree.dir("empty/inner");
  tree.link("link", "a.txt");
  const auto first = scan_it();
  EXPECT_EQ(text(first), "added a.txt\nadded dir\nadded dir/b\nadded empty\nadded empty/inner\nadded link\n");
  EXPECT_EQ(first.changes[0].now.digest, digest_of("one"));
  EXPECT_EQ(first.changes[5].target, "a.txt");
  EXPECT_EQ(first.counts.files, 2U);
  EXPECT_EQ(first.counts.hashed_bytes, 6U);
  EXPECT_EQ(problems(first), "");
  commit(first);
  settle();
  EXPECT_EQ(text(scan_it()), "");
  tree.write("a.txt", "three");
  tree.write("dir/c", "new");
  tree.remove("empty/inner");
  tree.remove("link");
  tree.link("link", "dir");
  ASSERT_EQ(::chmod(tree.at("dir/b").c_str(), 0755), 0);
  ASSERT_EQ(::chmod(tree.at("empty").c_str(), 0700), 0);
  const auto second = scan_it();
  EXPECT_EQ(text(second),
            "modified a.txt\nmode dir/b\nadded dir/c\nmode empty\ndeleted empty/inner\nmodified link\n");
  EXPECT_EQ(second.changes[0].before.digest, digest_of("one"));
  EXPECT_EQ(second.changes[0].now.digest, digest_of("three"));
}

TEST_F(ScanTest, ATouchedButEqualFileIsNoChangeAndReadOnce) {
  tree.write("a", "same");
  commit(scan_it());
  settle();
  const timespec times[2] = {{1000, 0}, {1000, 5}};
  ASSERT_EQ(::utimensat(AT_FDCWD, tree.at("a").c_str(), times, 0), 0);
  const auto result = scan_it();
  EXPECT_EQ(text(result), "");
  EXPECT_EQ(result.counts.hashed_files, 1U);
  commit(result);
  settle();
  EXPECT_EQ(scan_it().counts.hashed_files, 0U);
}

TEST_F(ScanTest, WhatWaitsToBePushedIsNotReadAgain) {
  const std::string one(kMinObservedBytes, '1');
  tree.write("a", one);
  options.granularity_ns = 1;  // stamps as fine as they come: nothing is racy for long
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  ScanResult result;
  do {  // never pushed: only what was learnt is kept
    result = scan_it();
    EXPECT_EQ(text(result), "added a\n");
    EXPECT_EQ(result.changes.at(0).now.digest, digest_of(one));
    ASSERT_TRUE(index->apply(result.learnt));
  } while (result.counts.hashed_files != 0 && std::chrono::steady_clock::now() < deadline);
  EXPECT_EQ(result.counts.hashed_files, 0U);
  tree.remove("a");
  ASSERT_TRUE(index->apply(scan_it().learnt));
  std::size_t left = 0;
  ASSERT_TRUE(index->each_observed([&](std::string_view, const index::Observed&) { ++left; }));
  EXPECT_EQ(left, 0U);
}

// Two writes within one tick of the file system's clock leave the same stamps. The granularity makes every
// tick last an hour, so that it is so on any kernel.
class RacyRuleTest : public ScanTest {
 protected:
  // True: the second write was seen.
  bool sees_a_write_in_the_same_tick() {
    options.granularity_ns = 3'600'000'000'000;
    for (int tries = 0; tries < 3; ++tries) {  // the hour may end between the writes
      tree.write("a", "one");
      commit(scan_it());
      const auto before = stamps();
      tree.write("a", "two");  // as long as before, in the same inode
      const auto result = scan_it();
      if (before != stamps()) continue;
      return text(result) == "modified a\n" && result.changes[0].now.digest == digest_of("two");
    }
    ADD_FAILURE() << "never in one tick";
    return false;
  }
  index::StatInfo stamps() const {
    struct stat st {};
    EXPECT_EQ(::stat(tree.at("a").c_str(), &st), 0);
    return stat_info(st, RacyRule(options.granularity_ns));
  }
};

TEST_F(RacyRuleTest, AWriteInTheSameTickIsSeen) { EXPECT_TRUE(sees_a_write_in_the_same_tick()); }

#if defined(NEARBOX_FAULT_POINTS)
TEST_F(RacyRuleTest, WithoutTheRuleItWouldBeMissed) {
  const Fault off("scan.no_racy_rule");
  EXPECT_FALSE(sees_a_write_in_the_same_tick());
}
#endif

TEST(RacyRule, StampsNearTheReadingAreNotBelieved) {
  const RacyRule rule(0);
  timespec tick{};
  ASSERT_EQ(::clock_getres(CLOCK_REALTIME_COARSE, &tick), 0);
  const std::int64_t step = tick.tv_sec * 1'000'000'000 + tick.tv_nsec;
  const std::int64_t now = 1'700'000'000'000'000'001;
  const auto racy = [&](std::int64_t mtime, std::int64_t ctime) {
    index::StatInfo stat;
    stat.mtime_ns = mtime;
    stat.ctime_ns = ctime;
    return rule.racy(stat, now);
  };
  EXPECT_TRUE(racy(now, now));
  EXPECT_TRUE(racy(now - 2 * step, now - 2 * step));
  EXPECT_FALSE(racy(now - 3 * step, now - 3 * step));
  EXPECT_TRUE(racy(5, now));                                    // an old mtime that was just set
  EXPECT_TRUE(racy(now + 1'000'000'000, now + 1'000'000'000));  // a server's clock ahead of ours
  EXPECT_FALSE(racy(now + 1'000'000'000'000, now - 3 * step));  // an mtime set into the future long ago
  // Whole seconds: a file system that knows no finer ones, or one that knows two-second steps.
  const std::int64_t second = 1'700'000'000'000'000'000;
  EXPECT_TRUE(racy(second - 3'000'000'000, second - 3'000'000'000));
  EXPECT_FALSE(racy(second - 5'000'000'000, second - 5'000'000'000));
}

TEST_F(ScanTest, RulesPruneAndLeftOutIsNotDeleted) {
  tree.write("src/a", "a");
  tree.write("dist/b", "b");
  tree.write("dist/keep", "k");
  tree.write("node_modules/x/i.js", "x");
  tree.write(".env", "PORT=1\n");
  const auto first = scan_it();
  EXPECT_EQ(text(first), "added dist\nadded dist/b\nadded dist/keep\nadded src\nadded src/a\n");
  ASSERT_EQ(first.left_out.size(), 2U);
  EXPECT_EQ(first.left_out[0].path, ".env");
  EXPECT_EQ(first.left_out[0].kind, ignore::RuleKind::kSecret);
  EXPECT_EQ(first.left_out[1].path, "node_modules");
  EXPECT_TRUE(first.left_out[1].directory);
  commit(first);
  tree.write(".gitignore", "dist/\n");
  tree.remove("dist/b");  // and gone: the sandbox's own output may lie there now
  const auto second = scan_it();
  EXPECT_EQ(text(second), "added .gitignore\nleft-out dist\nleft-out dist/b\nleft-out dist/keep\n");
  auto rules = plain_options();
  rules.include = {"dist/keep"};
  EXPECT_EQ(text(scan_it(rules)), "added .gitignore\nleft-out dist/b\n");
}

TEST_F(ScanTest, TrackedFilesInIgnoredDirectoriesAreFound) {
  tree.git("init -q");
  tree.write(".gitignore", "dist/\n");
  tree.write("dist/deep/tracked", "t");
  tree.write("dist/other", "o");
  tree.git("add -f dist/deep/tracked .gitignore");
  EXPECT_EQ(text(scan_it()), "added .gitignore\nadded dist\nadded dist/deep\nadded dist/deep/tracked\n");
}

TEST_F(ScanTest, OddFilesAreNamedAndTheRestGoesOn) {
  tree.write("good", "g");
  tree.write("\xff\xfe", "bytes");
  ASSERT_EQ(::mkfifo(tree.at("pipe").c_str(), 0600), 0);
  const base::UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  tree.at("sock").string().copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  tree.link("loop-a", "loop-b");
  tree.link("loop-b", "sub/../loop-a");
  tree.link("self", ".");
  tree.link("outside", "/etc");
  tree.link("nowhere", "missing");
  tree.dir("sub");
  const auto result = scan_it();
  EXPECT_EQ(problems(result),
            "symlink-loop loop-a\nsymlink-loop loop-b\nspecial pipe\nspecial sock\nname-not-utf8 \xff\xfe\n");
  EXPECT_EQ(result.counts.problems, 5U);
  EXPECT_EQ(text(result),
            "added good\nadded loop-a\nadded loop-b\nadded nowhere\nadded outside\nadded self\nadded "
            "sub\nadded \xff\xfe\n");
}

TEST_F(ScanTest, UnreadableThingsKeepTheirBaseline) {
  if (::geteuid() == 0) {
    // Root reads everything; a file that shows ENODEV or EACCES is made by leaving root.
    ASSERT_EQ(::chmod(tree.root().c_str(), 0755), 0);
  }
  tree.write("dir/a", "a");
  tree.write("file", "f");
  tree.write("other", "o");
  commit(scan_it());
  settle();
  tree.write("file", "changed");
  tree.write("other", "changed");
  ASSERT_EQ(::chmod(tree.at("dir").c_str(), 0), 0);
  ASSERT_EQ(::chmod(tree.at("file").c_str(), 0), 0);
  const bool root = ::geteuid() == 0;
  if (root) {
    ASSERT_EQ(::seteuid(65534), 0);
  }
  auto loaded = ignore::Rules::load(tree.root(), plain_options());
  auto result = loaded ? scan(*loaded, *index, options, {}) : base::Result<ScanResult>(loaded.error());
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
  ::chmod(tree.at("dir").c_str(), 0755);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(text(*result), "modified other\n");
  EXPECT_EQ(problems(*result), "unreadable dir\nunreadable file\n");
  EXPECT_EQ(result->problems.at(0).error, EACCES);
}

#if defined(NEARBOX_FAULT_POINTS)
TEST_F(ScanTest, AFileThatChangesWhileItIsReadIsNamed) {
  tree.write("calm", "c");
  tree.write("restless", "r");
  const Fault on("scan.changing", "restless");
  const auto result = scan_it();
  EXPECT_EQ(text(result), "added calm\n");
  EXPECT_EQ(problems(result), "changing restless\n");
}
#endif

TEST_F(ScanTest, LimitsOfSizeAndSymlinksLeftOut) {
  tree.write("big", std::string(1000, 'b'));
  tree.write("small", "s");
  tree.link("link", "small");
  options.max_file_bytes = 999;
  options.symlinks = Symlinks::kSkip;
  const auto result = scan_it();
  EXPECT_EQ(text(result), "added small\n");
  EXPECT_EQ(problems(result), "too-large big\nsymlink link\n");
}

// While one thread swaps a directory for a symlink that leads out of the root and back, no scan ever sees
// what lies outside.
TEST_F(ScanTest, ASwappedDirectoryLeadsNowhere) {
  TempTree outside;
  outside.write("stolen/secret", "s");
  tree.write("a/stolen/plain", "p");
  tree.link("b", outside.root());
  std::atomic<bool> done{false};
  const std::jthread swapper([&] {
    while (!done) {
      // RENAME_EXCHANGE: at any time both names are there.
      (void)::renameat2(AT_FDCWD, tree.at("a").c_str(), AT_FDCWD, tree.at("b").c_str(), RENAME_EXCHANGE);
    }
  });
  int swapped = 0;
  for (int i = 0; i < 400; ++i) {
    const auto result = scan_it();
    for (const auto& change : result.changes) {
      ASSERT_EQ(change.path.find("secret"), std::string::npos) << change.path;
      ASSERT_NE(change.now.digest, digest_of("s"));
    }
    swapped += result.problems.empty() ? 0 : 1;
  }
  done = true;
  RecordProperty("swapped", swapped);
}

#if defined(NEARBOX_FAULT_POINTS)
TEST_F(ScanTest, WithoutOpenat2TheSameHolds) {
  const Fault on("scan.no_openat2");
  TempTree outside;
  outside.write("secret", "s");
  tree.write("a/b/c", "c");
  tree.link("l", outside.root());
  EXPECT_EQ(text(scan_it()), "added a\nadded a/b\nadded a/b/c\nadded l\n");
}
#endif

TEST_F(ScanTest, AnotherMountIsNamedAndNotEntered) {
  tree.write("plain", "p");
  tree.write("mounted/before", "b");
  commit(scan_it());
  settle();
  if (::mount("nearbox-test", tree.at("mounted").c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "only root mounts";
  }
  tree.write("mounted/hidden", "h");
  const auto result = scan_it();
  std::string without;
#if defined(NEARBOX_FAULT_POINTS)
  {
    const Fault on("scan.no_openat2");
    without = problems(scan_it());
  }
  EXPECT_EQ(without, "other-mount mounted\n");
#endif
  ASSERT_EQ(::umount(tree.at("mounted").c_str()), 0);
  EXPECT_EQ(text(result), "");  // what the baseline has below is not deleted
  EXPECT_EQ(problems(result), "other-mount mounted\n");
}

TEST_F(ScanTest, PartOfTheTreeAlone) {
  tree.write("a/b/one", "1");
  tree.write("a/b/two", "2");
  tree.write("a/other", "o");
  tree.write("c/x", "x");
  tree.write(".gitignore", "dist/\n");
  commit(scan_it());
  settle();
  tree.write("a/b/one", "11");
  tree.write("a/other", "oo");
  tree.write("c/x", "xx");
  tree.write("a/new/deep/file", "n");
  tree.write("dist/x", "x");
  tree.remove("a/b/two");
  options.only = {"a/b", "a/b/one", "dist/x"};
  EXPECT_EQ(text(scan_it()), "modified a/b/one\ndeleted a/b/two\n");
  options.only = {"a/new/deep/file", "c"};
  EXPECT_EQ(text(scan_it()), "added a/new\nadded a/new/deep\nadded a/new/deep/file\nmodified c/x\n");
  options.only = {"a/b/two"};
  EXPECT_EQ(text(scan_it()), "deleted a/b/two\n");
  tree.remove("a");
  options.only = {"a/b/one"};  // its directory is gone: as far up as something is there
  EXPECT_EQ(text(scan_it()), "deleted a\ndeleted a/b\ndeleted a/b/one\ndeleted a/b/two\ndeleted a/other\n");
  tree.write("a", "a file now");
  options.only = {"a/b/one"};
  EXPECT_EQ(text(scan_it()), "modified a\ndeleted a/b\ndeleted a/b/one\ndeleted a/b/two\ndeleted a/other\n");
  options.only = {""};
  EXPECT_EQ(text(scan_it()),
            "modified a\ndeleted a/b\ndeleted a/b/one\ndeleted a/b/two\ndeleted a/other\nmodified c/x\n");
}

TEST_F(ScanTest, StopsWhenAsked) {
  tree.write("a", "a");
  auto loaded = ignore::Rules::load(tree.root(), plain_options());
  std::stop_source stop;
  stop.request_stop();
  EXPECT_EQ(scan(*loaded, *index, options, stop.get_token()).error().as_errno(), ECANCELED);
  tree.remove("");
  EXPECT_EQ(scan(*loaded, *index, options, {}).error().as_errno(), ENOENT);
}

TEST_F(ScanTest, ManyFilesWithManyThreads) {
  options.hash_threads = 8;
  for (int i = 0; i < 500; ++i)
    tree.write("d" + std::to_string(i % 7) + "/f" + std::to_string(i), std::to_string(i));
  const auto result = scan_it();
  EXPECT_EQ(result.counts.hashed_files, 500U);
  for (const auto& change : result.changes) {
    if (change.now.stat.type != index::Type::kFile) continue;
    EXPECT_EQ(change.now.digest, digest_of(change.path.substr(change.path.find('f') + 1)));
  }
  commit(result);
  settle();
}

}  // namespace
}  // namespace nearbox::scan
