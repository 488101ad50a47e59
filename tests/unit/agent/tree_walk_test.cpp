// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/tree_walk.h"

#include <map>
#include <random>
#include <set>

#include <gtest/gtest.h>
#include <zstd.h>

#include "tests/unit/agent/agent_test_util.h"
#include "tests/unit/agent/hung_fs.h"
#include "tools/agent/fs_path.h"
#include "tools/agent/tree_stream.h"

namespace nearbox::agent {
namespace {

struct Tree {
  std::map<std::string, wire::TreeBlock> dirs;     // put together from their blocks
  std::map<std::string, wire::TreeEntry> entries;  // by full path
  std::vector<std::string> order;
};

// Decompresses and decodes what a call sent.
Tree decode(const wire::Bytes& sent) {
  Tree tree;
  wire::TreeDecoder decoder;
  std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), ZSTD_freeDCtx);
  ZSTD_inBuffer in{sent.data(), sent.size(), 0};
  wire::Bytes buffer(65536);
  while (in.pos < in.size) {
    ZSTD_outBuffer out{buffer.data(), buffer.size(), 0};
    const auto left = ZSTD_decompressStream(context.get(), &out, &in);
    if (ZSTD_isError(left) != 0) {
      ADD_FAILURE() << ZSTD_getErrorName(left);
      return tree;
    }
    const auto fed = decoder.feed(wire::ByteView(buffer).first(out.pos), [&](wire::TreeBlock&& block) {
      tree.order.push_back(block.path);
      for (auto& entry : block.entries) {
        const auto path = block.path.empty() ? entry.name : block.path + "/" + entry.name;
        EXPECT_TRUE(tree.entries.emplace(path, entry).second) << path;
      }
      const auto found = tree.dirs.find(block.path);
      if (found != tree.dirs.end()) {
        EXPECT_TRUE(found->second.flags & wire::kTreeMore) << "a block after the last one of " << block.path;
      }
      tree.dirs[block.path] = std::move(block);
    });
    EXPECT_TRUE(fed.ok());
  }
  EXPECT_TRUE(decoder.at_block_boundary());
  for (const auto& [path, block] : tree.dirs) EXPECT_FALSE(block.flags & wire::kTreeMore) << path;
  return tree;
}

class TreeWalkTest : public ::testing::Test {
 protected:
  RootPtr open_root(const std::string& path) {
    auto root = std::make_shared<Root>();
    root->dir.reset(::open(path.c_str(), O_PATH | O_DIRECTORY));
    root->path = path;
    return root;
  }
  Tree walk(const std::string& path, wire::Tree request, TreeWalk::Counts* counts = nullptr) {
    auto walking = TreeWalk::start(open_root(path), request);
    EXPECT_TRUE(walking.ok());
    test::FakeResponder responder;
    EXPECT_EQ(stream_tree(**walking, responder), 0);
    if (counts != nullptr) *counts = (*walking)->counts();
    return decode(responder.data());
  }
  test::TempDir dir{test::fast_directory()};
};

TEST_F(TreeWalkTest, ShowsExactlyWhatIsThere) {
  std::mt19937_64 rng(11);
  std::vector<std::string> dirs{""};
  for (int i = 0; i < 600; ++i) {
    const auto parent = dirs[rng() % dirs.size()];
    const auto path =
        (parent.empty() ? "" : parent + "/") + "n" + std::to_string(i) + (i % 50 == 0 ? "\n\xff" : "");
    const auto full = dir / path;
    switch (rng() % 4) {
      case 0:
        ASSERT_EQ(::mkdir(full.c_str(), 0750), 0);
        dirs.push_back(path);
        break;
      case 1:
        ASSERT_EQ(::symlink(("../target" + std::to_string(i)).c_str(), full.c_str()), 0);
        break;
      case 2:
        ASSERT_EQ(::mkfifo(full.c_str(), 0600), 0);
        break;
      default:
        test::write_file(full, std::string(rng() % 5000, 'x'));
    }
  }
  TreeWalk::Counts counts;
  const auto tree = walk(dir.path, {}, &counts);
  EXPECT_EQ(tree.dirs.size(), dirs.size());
  EXPECT_EQ(counts.directories, dirs.size());
  EXPECT_EQ(counts.entries, 600U);
  EXPECT_FALSE(counts.truncated);
  EXPECT_EQ(tree.order.front(), "");
  std::size_t seen = 0;
  for (const auto& item : std::filesystem::recursive_directory_iterator(dir.path)) {
    const auto path = item.path().string().substr(dir.path.size() + 1);
    const auto found = tree.entries.find(path);
    ASSERT_NE(found, tree.entries.end()) << path;
    const auto st = stat_at(AT_FDCWD, item.path().c_str());
    ASSERT_TRUE(st.ok());
    auto shown = make_attr(*st);
    shown.version = found->second.attr.version;  // nobody counts here
    EXPECT_EQ(found->second.attr, shown) << path;
    if (S_ISLNK(st->st_mode)) {
      EXPECT_EQ(found->second.target, std::filesystem::read_symlink(item.path()).string());
    }
    ++seen;
  }
  EXPECT_EQ(seen, tree.entries.size());
}

// What hangs is shown as an empty directory; the rest of the tree is not kept waiting.
TEST_F(TreeWalkTest, AFileSystemThatDoesNotAnswer) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  test::write_file(dir / "before", "x");
  test::HungFs hung(dir / "hung");
  if (!hung.mounted()) GTEST_SKIP() << "may not mount";
  ASSERT_EQ(::mkdir((dir / "z").c_str(), 0755), 0);
  test::write_file(dir / "z/after", "x");
  MountProbe probe;
  auto walking = TreeWalk::start(open_root(dir.path), {}, &probe);
  ASSERT_TRUE(walking.ok());
  test::FakeResponder responder;
  EXPECT_EQ(stream_tree(**walking, responder), 0);
  const auto tree = decode(responder.data());
  EXPECT_EQ(tree.entries.count("before"), 1U);
  EXPECT_EQ(tree.entries.count("z/after"), 1U);
  ASSERT_EQ(tree.dirs.count("hung"), 1U);
  EXPECT_TRUE(tree.dirs.at("hung").flags & wire::kTreePseudo);
  hung.release();
}

TEST_F(TreeWalkTest, LargeDirectoriesComeInSeveralBlocks) {
  for (int i = 0; i < 5000; ++i) {
    const base::UniqueFd fd(::open((dir / ("file-" + std::to_string(i))).c_str(), O_CREAT | O_WRONLY, 0600));
    ASSERT_TRUE(fd);
  }
  const auto tree = walk(dir.path, {});
  EXPECT_EQ(tree.entries.size(), 5000U);
  EXPECT_GE(tree.order.size(), 2U);
}

TEST_F(TreeWalkTest, DepthAndEntryLimit) {
  for (const auto* path : {"a", "a/b", "a/b/c", "z"}) ASSERT_EQ(::mkdir((dir / path).c_str(), 0755), 0);
  wire::Tree request;
  request.depth = 1;
  auto tree = walk(dir.path, request);
  EXPECT_EQ(tree.entries.size(), 2U);
  EXPECT_TRUE(tree.dirs.at("a").flags & wire::kTreeNotExpanded);
  EXPECT_NE(tree.dirs.at("a").attr.ino, 0U);
  request.depth = 0;
  request.max_entries = 2;
  TreeWalk::Counts counts;
  tree = walk(dir.path, request, &counts);
  EXPECT_TRUE(counts.truncated);
  EXPECT_TRUE(tree.dirs.at("a").flags & wire::kTreeNotExpanded);
  request = {};
  request.path = "a/b";
  tree = walk(dir.path, request);
  EXPECT_EQ(tree.order.front(), "a/b");
  EXPECT_EQ(tree.entries.count("a/b/c"), 1U);
}

TEST_F(TreeWalkTest, StartErrors) {
  test::write_file(dir / "f", "");
  ASSERT_EQ(::symlink("/", (dir / "l").c_str()), 0);
  wire::Tree request;
  const auto error = [&](const std::string& path) {
    request.path = path;
    auto walking = TreeWalk::start(open_root(dir.path), request);
    return walking ? 0 : walking.error().as_errno();
  };
  EXPECT_EQ(error("none"), ENOENT);
  EXPECT_EQ(error("f"), ENOTDIR);
  EXPECT_EQ(error("../x"), EINVAL);
  EXPECT_NE(error("l"), 0);
}

TEST_F(TreeWalkTest, PseudoFileSystemsAreEmpty) {
  const auto proc = walk("/proc", {});
  ASSERT_EQ(proc.dirs.size(), 1U);
  EXPECT_TRUE(proc.dirs.at("").flags & wire::kTreePseudo);
  EXPECT_TRUE(proc.entries.empty());
  wire::Tree request;
  request.depth = 2;
  const auto all = walk("/", request);
  EXPECT_TRUE(all.dirs.at("proc").flags & wire::kTreePseudo);
  EXPECT_TRUE(all.dirs.at("proc").flags & wire::kTreeCrossed);
}

TEST_F(TreeWalkTest, UnlistableDirectoriesSayWhy) {
  if (::geteuid() == 0) GTEST_SKIP() << "root lists everything";
  ASSERT_EQ(::mkdir((dir / "no").c_str(), 0), 0);
  const auto tree = walk(dir.path, {});
  EXPECT_TRUE(tree.dirs.at("no").flags & wire::kTreeFailed);
  EXPECT_EQ(tree.dirs.at("no").error, EACCES);
  EXPECT_EQ(::chmod((dir / "no").c_str(), 0700), 0);  // or it could not be removed
}

TEST_F(TreeWalkTest, HurriedDirectoriesComeFirst) {
  // More directories than fit before the walkers wait for the reader, the wanted one last.
  constexpr int kDirectories = 300;
  for (int i = 0; i < kDirectories; ++i) {
    const auto name = "d" + std::to_string(i);
    ASSERT_EQ(::mkdir((dir / name).c_str(), 0755), 0);
    ASSERT_EQ(::mkdir((dir / (name + "/deep")).c_str(), 0755), 0);
    for (int j = 0; j < 60; ++j) {
      ASSERT_EQ(::symlink(std::string(3500, 'x').c_str(), (dir / (name + "/l" + std::to_string(j))).c_str()),
                0);
    }
  }
  auto walking = TreeWalk::start(open_root(dir.path), {});
  ASSERT_TRUE(walking.ok());
  TreeWalk::Item item;
  const auto soon = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  ASSERT_EQ((*walking)->next(item, soon), TreeWalk::Next::kItem);
  std::set<std::string> listed;
  for (const auto& entry : item.block.entries) listed.insert(entry.name);
  // The walkers stand still at their bound; the last one of the listing cannot have been taken yet.
  const auto wanted = item.block.entries.back().name + "/deep";
  (*walking)->hurry(wanted);
  std::set<std::string> before;
  while ((*walking)->next(item, soon) == TreeWalk::Next::kItem && item.block.path != wanted) {
    before.insert(item.block.path);
  }
  EXPECT_EQ(item.block.path, wanted);
  EXPECT_TRUE(item.urgent);
  // Unhurried it comes after all of them; hurried, after what lay in the bound and what one walker lists
  // while the other lists the directory above it.
  EXPECT_LT(before.size(), kDirectories / 2U);
}

TEST_F(TreeWalkTest, ACancelledCallStopsTheWalk) {
  for (int i = 0; i < 50; ++i) ASSERT_EQ(::mkdir((dir / std::to_string(i)).c_str(), 0755), 0);
  auto walking = TreeWalk::start(open_root(dir.path), {});
  ASSERT_TRUE(walking.ok());
  test::FakeResponder responder;
  responder.cancel();
  EXPECT_EQ(stream_tree(**walking, responder), ECANCELED);
}

TEST_F(TreeWalkTest, EntriesMayVanishAnyTime) {
  std::atomic<bool> stop{false};
  std::jthread churn([&] {
    for (int i = 0; !stop; ++i) {
      const auto name = dir / ("c" + std::to_string(i % 20));
      ::mkdir(name.c_str(), 0755);
      ::mkdir((name + "/x").c_str(), 0755);
      ::rmdir((name + "/x").c_str());
      ::rmdir(name.c_str());
    }
  });
  for (int i = 0; i < 50; ++i) {
    auto walking = TreeWalk::start(open_root(dir.path), {});
    ASSERT_TRUE(walking.ok());
    test::FakeResponder responder;
    ASSERT_EQ(stream_tree(**walking, responder), 0);
  }
  stop = true;
}

}  // namespace
}  // namespace nearbox::agent
