// SPDX-License-Identifier: Apache-2.0
#include "sync/engine/tree_store.h"

#include <atomic>
#include <cstdlib>
#include <optional>

#include <gtest/gtest.h>

#include "tests/unit/sync/fake_tree.h"

namespace nearbox::sync {
namespace {

using test::eventually;
using wire::Method;
using namespace std::chrono_literals;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

// The answer of one completion, which must come once.
class Answer {
 public:
  Answer() : state_(std::make_shared<State>()) {}
  TreeStore::Done fn() {
    return [state = state_](int error) {
      state->error = error;
      EXPECT_EQ(++state->count, 1);
    };
  }
  int get() {  // -1: never
    return eventually([&] { return state_->count > 0; }) ? state_->error.load() : -1;
  }
  bool came() const { return state_->count > 0; }

 private:
  struct State {
    std::atomic<int> error{-1};
    std::atomic<int> count{0};
  };
  std::shared_ptr<State> state_;
};

class Listener : public ChangeListener {
 public:
  void on_changes(const Changes& changes) noexcept override {
    EXPECT_FALSE(running_.exchange(true));
    for (const auto& change : changes) names.push_back(change.name);
    count += changes.size();
    running_ = false;
  }
  std::atomic<std::size_t> count{0};
  std::vector<std::string> names;

 private:
  std::atomic<bool> running_{false};
};

class TreeStoreTest : public ::testing::Test {
 protected:
  TreeStoreTest() {
    link.do_now([this] {
      for (int d = 0; d < 8; ++d) {
        const auto dir = "a/b/d" + std::to_string(d);
        tree.nodes.contains("a") ? 0 : (tree.put("a", S_IFDIR | 0755), tree.put("a/b", S_IFDIR | 0755), 0);
        tree.put(dir, S_IFDIR | 0755);
        for (int f = 0; f < 17; ++f) tree.put(dir + "/f" + std::to_string(f), S_IFREG | 0644);
      }
      tree.put("other", S_IFDIR | 0755);
      tree.put("other/x", S_IFREG | 0644);
    });
  }
  ~TreeStoreTest() override {
    store.reset();
    link.stop();
  }
  TreeStore::Deadline soon(std::chrono::milliseconds in = 20s) {
    return std::chrono::steady_clock::now() + in;
  }
  void open() {
    link.connect(1, false);
    Answer opened;
    store->open_root("/work", soon(), opened.fn());
    ASSERT_EQ(opened.get(), 0);
  }
  int load(const std::string& path) {
    Answer known, done;
    store->load(path, soon(), known.fn(), done.fn());
    const int error = done.get();
    EXPECT_TRUE(eventually([&] { return known.came(); }));
    return error;
  }
  int rescan() {
    Answer done;
    store->rescan(soon(), done.fn());
    return done.get();
  }
  int want(NodeIndex dir, std::chrono::milliseconds in = 20s) {
    Answer done;
    store->want(dir, soon(in), done.fn());
    return done.get();
  }
  NodeIndex at(const std::string& path) {
    return store->read([&](const Mirror& m) { return m.walk(Mirror::kRoot, path); });
  }
  Listing listing(const std::string& path) {
    return store->read([&](const Mirror& m) { return m.listing(m.walk(Mirror::kRoot, path)); });
  }
  void expect_same_below(const std::string& top) {
    link.do_now([&] {
      store->read([&](const Mirror& m) {
        for (const auto& [path, attr] : tree.nodes) {
          if (path != top && !path.starts_with(top + "/")) continue;
          const auto node = m.walk(Mirror::kRoot, path);
          EXPECT_NE(node, kNoNode) << path;
          EXPECT_EQ(m.attr(node), attr) << path;
          if (!S_ISDIR(attr.mode)) continue;
          EXPECT_EQ(m.listing(node), Listing::kComplete) << path;
          std::size_t names = 0;
          m.list(node, 0, [&](std::uint64_t, std::string_view, NodeIndex) { return ++names > 0; });
          EXPECT_EQ(names, tree.names(path).size()) << path;
        }
      });
    });
  }

  base::Logger log{2, base::LogLevel::kOff};
  base::Timers timers;
  test::FakeLink link{seed()};
  test::FakeTree tree{link};
  std::unique_ptr<TreeStore> store = std::make_unique<TreeStore>(link, timers, log);
};

TEST_F(TreeStoreTest, LoadsASubtreeAndItsAncestors) {
  open();
  EXPECT_EQ(store->root(), 7u);
  EXPECT_EQ(store->root_path(), "/canonical");
  ASSERT_EQ(load("a/b"), 0);
  expect_same_below("a/b");
  EXPECT_EQ(listing(""), Listing::kUnknown);
  EXPECT_EQ(listing("a"), Listing::kUnknown);
  EXPECT_EQ(at("other"), kNoNode);
  const auto walks = link.calls_made(Method::kTree);
  EXPECT_EQ(load("a/b"), 0);
  EXPECT_EQ(load("a/b/d3"), 0);
  EXPECT_EQ(load("a/b/d3/f1"), ENOTDIR);
  EXPECT_EQ(load("a/b/none"), ENOENT);
  EXPECT_EQ(link.calls_made(Method::kTree), walks) << "loaded already";
  EXPECT_EQ(load("none"), ENOENT);
  EXPECT_EQ(load("other/x"), ENOTDIR);
  EXPECT_EQ(load("../x"), EINVAL);
  EXPECT_EQ(want(at("a")), 0);
  EXPECT_EQ(want(Mirror::kRoot), 0);
  EXPECT_NE(at("other"), kNoNode);
}

TEST_F(TreeStoreTest, SurvivesLossesAnywhere) {
  for (std::uint64_t round = 0; round < 20; ++round) {
    store = std::make_unique<TreeStore>(link, timers, log);
    link.lose_at_random(0);
    open();
    link.lose_at_random(10);
    ASSERT_EQ(load(""), 0);
    link.lose_at_random(5);
    ASSERT_EQ(rescan(), 0);
    link.lose_at_random(0);
    expect_same_below("a");
  }
}

TEST_F(TreeStoreTest, RescanBringsTheDifferences) {
  open();
  ASSERT_EQ(load("a"), 0);
  ASSERT_EQ(load("a/b/d1"), 0);
  Listener listener;
  store->add_listener(&listener);
  ASSERT_EQ(rescan(), 0);
  EXPECT_EQ(listener.count, 0u) << "nothing changed";
  link.do_now([this] {
    tree.remove("a/b/d1");
    tree.put("a/new", S_IFDIR | 0755);
    tree.put("a/new/file", S_IFREG | 0644);
    tree.nodes.at("a/b/d2/f2").size = 99;
  });
  ASSERT_EQ(rescan(), 0);
  EXPECT_EQ(at("a/b/d1"), kNoNode);
  expect_same_below("a");
  EXPECT_GT(listener.count, 0u);
  store->remove_listener(&listener);
  EXPECT_EQ(link.calls_made(Method::kTree), 3u) << "a loaded subtree inside another is not walked by itself";
}

TEST_F(TreeStoreTest, RescansAskedForWhileOneRunsShareOneMore) {
  open();
  ASSERT_EQ(load("a"), 0);
  std::optional<std::pair<api::CallToken, wire::Tree>> held;
  link.do_now([&] {
    tree.on_tree = [&](api::CallToken token, const wire::Tree& ask) {
      held = {token, ask};
      return true;
    };
  });
  Answer first, second, third;
  store->rescan(soon(), first.fn());
  ASSERT_TRUE(eventually([&] { return link.calls_made(Method::kTree) == 2; }));
  store->rescan(soon(), second.fn());
  store->rescan(soon(), third.fn());
  link.do_now([&] {
    tree.on_tree = {};
    tree.answer_tree(held->first, held->second);
  });
  EXPECT_EQ(first.get(), 0);
  EXPECT_EQ(second.get(), 0);
  EXPECT_EQ(third.get(), 0);
  EXPECT_EQ(link.calls_made(Method::kTree), 3u);
}

TEST_F(TreeStoreTest, AWalkThatIsNotAnsweredDoesNotHoldUpTheOthers) {
  open();
  ASSERT_EQ(load("a"), 0);
  ASSERT_EQ(load("other"), 0);
  store->set_rescan_stall(100ms);
  link.do_now([&] {
    tree.put("other/new", S_IFREG | 0644);
    tree.on_tree = [&](api::CallToken, const wire::Tree& ask) { return ask.path == "a"; };
  });
  EXPECT_EQ(rescan(), ETIMEDOUT);
  EXPECT_NE(at("other/new"), kNoNode);
  link.do_now([&] {
    tree.on_tree = {};
    tree.put("a/new", S_IFREG | 0644);
  });
  EXPECT_EQ(rescan(), 0);
  EXPECT_NE(at("a/new"), kNoNode);
}

TEST_F(TreeStoreTest, AFirstLoadThatIsNotAnsweredDoesNotHoldUpARescan) {
  open();
  ASSERT_EQ(load("other"), 0);
  store->set_rescan_stall(100ms);
  std::optional<std::pair<api::CallToken, wire::Tree>> held;
  link.do_now([&] {
    tree.put("other/new", S_IFREG | 0644);
    tree.on_tree = [&](api::CallToken token, const wire::Tree& ask) {
      if (ask.path != "a") return false;
      held = {token, ask};
      return true;
    };
  });
  Answer known, done;
  store->load("a", soon(), known.fn(), done.fn());
  EXPECT_EQ(known.get(), 0);
  EXPECT_EQ(rescan(), ETIMEDOUT);
  EXPECT_NE(at("other/new"), kNoNode);
  link.do_now([&] {  // the load itself was not given up
    tree.on_tree = {};
    tree.answer_tree(held->first, held->second);
  });
  EXPECT_EQ(done.get(), 0);
  EXPECT_EQ(rescan(), 0);
}

TEST_F(TreeStoreTest, WantedDirectoriesAreHurriedInARunningLoad) {
  open();
  api::CallToken walk = 0;
  link.do_now([&] {
    tree.on_tree = [&](api::CallToken token, const wire::Tree& ask) {
      if (ask.depth != 0) return false;
      walk = token;
      wire::Bytes bytes;
      wire::TreeEncoder encoder;
      for (const auto& block : tree.blocks("a")) encoder.add(block, bytes);
      for (const auto& block : tree.blocks("a/b")) encoder.add(block, bytes);
      ZSTD_CCtx* context = ZSTD_createCCtx();  // flushed, not ended
      wire::Bytes packed(ZSTD_compressBound(bytes.size()));
      ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
      ZSTD_outBuffer out{packed.data(), packed.size(), 0};
      EXPECT_EQ(ZSTD_compressStream2(context, &out, &in, ZSTD_e_flush), 0u);
      ZSTD_freeCCtx(context);
      packed.resize(out.pos);
      link.chunk(token, packed);
      return true;
    };
  });
  Answer known, done;
  store->load("a", soon(), known.fn(), done.fn());
  EXPECT_EQ(known.get(), 0);
  ASSERT_TRUE(eventually([&] { return at("a/b/d5") != kNoNode; }));
  EXPECT_FALSE(done.came());
  EXPECT_EQ(listing("a/b/d5"), Listing::kUnknown);
  EXPECT_EQ(want(at("a/b")), 0) << "came already";
  // The agent does not answer the hurry: after some patience the directory is listed alone.
  EXPECT_EQ(want(at("a/b/d5")), 0);
  link.do_now([&] { EXPECT_EQ(tree.hurried, std::vector<std::string>{"a/b/d5"}); });
  Answer last;
  store->want(at("a/b/d6"), soon(), last.fn());
  link.do_now([&] {
    tree.on_tree = {};
    link.end(walk, EIO);
  });
  EXPECT_EQ(done.get(), EIO);
  EXPECT_EQ(last.get(), 0) << "the walk is over: listed alone";
}

TEST_F(TreeStoreTest, WantSaysWhyNot) {
  open();
  ASSERT_EQ(load("other"), 0);
  EXPECT_EQ(want(at("other/x")), ENOTDIR);
  EXPECT_EQ(want(12345), ENOENT);
  link.do_now([&] {
    tree.on_tree = [&](api::CallToken token, const wire::Tree& ask) {
      wire::Bytes bytes;
      wire::TreeEncoder().add({ask.path, tree.nodes.at(ask.path), wire::kTreeFailed, EACCES, {}}, bytes);
      link.chunk(token, test::FakeTree::pack(bytes));
      link.end(token, 0, wire::encode(wire::TreeReply{}));
      return true;
    };
  });
  EXPECT_EQ(want(Mirror::kRoot), EACCES);
  EXPECT_EQ(listing(""), Listing::kFailed);
  link.do_now([&] { tree.on_tree = {}; });
  EXPECT_EQ(want(Mirror::kRoot), 0) << "asked again";
}

TEST_F(TreeStoreTest, DeadlinesHoldWhenNobodyAnswers) {
  open();
  link.do_now([&] { tree.on_tree = [](api::CallToken, const wire::Tree&) { return true; }; });
  EXPECT_EQ(want(Mirror::kRoot, 30ms), ETIMEDOUT);
  Answer known, done;
  store->load("a", soon(100ms), known.fn(), done.fn());
  EXPECT_EQ(known.get(), 0);
  EXPECT_EQ(done.get(), ETIMEDOUT);
  link.lose();
  Answer rescanned;
  store->rescan(soon(30ms), rescanned.fn());
  EXPECT_EQ(rescanned.get(), ETIMEDOUT);
}

TEST_F(TreeStoreTest, AWantedDirectoryThatGoesAnswersAtOnce) {
  open();
  ASSERT_EQ(load("other"), 0);
  link.do_now([&] { tree.on_tree = [](api::CallToken, const wire::Tree&) { return true; }; });
  const auto dir = store->write([](Mirror& m, Changes& changes) {
    wire::Attr attr;
    attr.dev = 1, attr.ino = 9999, attr.mode = S_IFDIR | 0755;
    return m.link(m.walk(Mirror::kRoot, "other"), "dir", attr, {}, changes);
  });
  Answer wanted;
  store->want(dir, soon(), wanted.fn());
  store->write([](Mirror& m, Changes& changes) { m.unlink(m.walk(Mirror::kRoot, "other"), "dir", changes); });
  EXPECT_EQ(wanted.get(), ENOENT);
  EXPECT_TRUE(eventually([&] {  // and its pin is given back
    return store->read([&](const Mirror& m) { return m.attr(dir).ino == 0; });
  }));
}

// An own creation that was acknowledged after the agent had walked its directory is not undone by the
// older listing, and what changed there in the sandbox still arrives.
TEST_F(TreeStoreTest, OwnOperationsSurviveAnOlderListing) {
  open();
  ASSERT_EQ(load("other"), 0);
  const auto dir = at("other");
  link.do_now([&] {
    tree.on_tree = [&](api::CallToken token, const wire::Tree& ask) {
      if (ask.depth != 0) return false;
      wire::Bytes bytes;
      wire::TreeEncoder encoder;
      for (const auto& block : tree.blocks("other")) encoder.add(block, bytes);
      tree.put("other/own", S_IFREG | 0644);  // after the walk was there
      tree.put("other/theirs", S_IFREG | 0644);
      store->begin_operation(dir);
      store->write([&](Mirror& m, Changes& changes) {
        return m.link(dir, "own", tree.nodes.at("other/own"), {}, changes);
      });
      store->end_operation(dir);
      link.chunk(token, test::FakeTree::pack(bytes));
      link.end(token, 0, wire::encode(wire::TreeReply{}));
      tree.on_tree = {};  // the end of this function, and what it captured
      return true;
    };
  });
  Listener listener;
  store->add_listener(&listener);
  ASSERT_EQ(rescan(), 0);
  expect_same_below("other");
  link.do_now([&] {
    EXPECT_EQ(std::count(listener.names.begin(), listener.names.end(), "own"), 1) << "came once, never went";
  });
  store->remove_listener(&listener);
}

// A file that was written after the agent had looked at it keeps what the write said, also where the clock
// of the sandbox is too coarse to tell the two apart.
TEST_F(TreeStoreTest, OwnWritesSurviveAnOlderListing) {
  open();
  ASSERT_EQ(load("other"), 0);
  const auto node = at("other/x");
  ASSERT_NE(node, kNoNode);
  for (const std::int64_t step : {0, 1}) {
    const auto size = 100 + static_cast<std::uint64_t>(step);
    link.do_now([&] {
      tree.on_tree = [&](api::CallToken token, const wire::Tree& ask) {
        if (ask.depth != 0) return false;
        wire::Bytes bytes;
        wire::TreeEncoder encoder;
        for (const auto& block : tree.blocks("other")) encoder.add(block, bytes);
        store->begin_operation(node);
        auto& written = tree.nodes.at("other/x");  // after the walk was there
        written.size = size;
        written.ctime_ns += step;
        store->write([&](Mirror& m, Changes& changes) { m.set_attr(node, written, changes); });
        store->end_operation(node);
        link.chunk(token, test::FakeTree::pack(bytes));
        link.end(token, 0, wire::encode(wire::TreeReply{}));
        tree.on_tree = {};  // the end of this function, and what it captured
        return true;
      };
    });
    ASSERT_EQ(rescan(), 0);
    EXPECT_EQ(store->read([&](const Mirror& m) { return m.attr(node).size; }), size);
    expect_same_below("other");
  }
}

TEST_F(TreeStoreTest, ADirectoryThatNeverRestsDoesNotHoldARescanForEver) {
  open();
  ASSERT_EQ(load("other"), 0);
  store->begin_operation(at("other"));
  link.do_now([&] { tree.remove("other/x"); });
  EXPECT_EQ(rescan(), 0);
  EXPECT_NE(at("other/x"), kNoNode);
  store->end_operation(at("other"));
  EXPECT_EQ(rescan(), 0);
  EXPECT_EQ(at("other/x"), kNoNode);
}

TEST_F(TreeStoreTest, ANewAgentOpensTheRootAgainAndIsScanned) {
  open();
  ASSERT_EQ(load("a"), 0);
  link.lose();
  link.do_now([&] {
    tree.root = 8;
    tree.put("a/fresh", S_IFREG | 0644);
    tree.remove("a/b/d0");
  });
  link.connect(2, false);
  ASSERT_TRUE(eventually([&] { return at("a/fresh") != kNoNode && at("a/b/d0") == kNoNode; }));
  EXPECT_EQ(store->root(), 8u);
  EXPECT_EQ(rescan(), 0);
  expect_same_below("a");
}

TEST_F(TreeStoreTest, ALoadGoesOnWithANewAgent) {
  open();
  std::atomic<bool> walking{false};
  link.do_now([&] { tree.on_tree = [&](api::CallToken, const wire::Tree&) { return walking = true; }; });
  Answer known, done, wanted;
  store->load("a", soon(), known.fn(), done.fn());
  ASSERT_TRUE(eventually([&] { return walking.load(); }));
  store->want(Mirror::kRoot, soon(), wanted.fn());
  link.lose();
  link.do_now([&] {
    tree.on_tree = {};
    tree.root = 9;
  });
  link.connect(2, false);
  EXPECT_EQ(done.get(), 0);
  EXPECT_EQ(wanted.get(), 0);
  expect_same_below("a");
}

TEST_F(TreeStoreTest, ARescanDuringALoadWalksItOnceMore) {
  open();
  std::atomic<api::CallToken> walk{0};
  std::optional<wire::Tree> asked;
  link.do_now([&] {
    tree.on_tree = [&](api::CallToken token, const wire::Tree& ask) {
      asked = ask;
      walk = token;
      return true;
    };
  });
  Answer known, done, scanned;
  store->load("a", soon(), known.fn(), done.fn());
  ASSERT_TRUE(eventually([&] { return walk != 0; }));
  store->rescan(soon(), scanned.fn());
  link.do_now([&] {
    tree.on_tree = {};
    tree.answer_tree(walk, *asked);
    tree.put("a/late", S_IFREG | 0644);
  });
  EXPECT_EQ(done.get(), 0);
  EXPECT_EQ(scanned.get(), 0);
  EXPECT_NE(at("a/late"), kNoNode);
}

TEST_F(TreeStoreTest, GarbageIsEproto) {
  open();
  const auto answer_with = [&](wire::Bytes bytes) {
    link.do_now([&] {
      tree.on_tree = [this, bytes = std::move(bytes)](api::CallToken token, const wire::Tree&) {
        link.chunk(token, bytes);
        link.end(token, 0, wire::encode(wire::TreeReply{}));
        return true;
      };
    });
    return load("a");
  };
  EXPECT_EQ(answer_with(wire::Bytes(100, std::byte{0x55})), EPROTO);
  EXPECT_EQ(answer_with(test::FakeTree::pack(wire::Bytes(100, std::byte{0x55}))), EPROTO);
  EXPECT_EQ(answer_with(test::FakeTree::pack(wire::Bytes(2, std::byte{0x01}))), EPROTO) << "cut";
  EXPECT_EQ(answer_with({}), EPROTO) << "no stream at all";
  wire::Bytes block;
  wire::TreeEncoder encoder;
  encoder.add({"a", wire::Attr{}, 0, 0, {}}, block);
  auto packed = test::FakeTree::pack(block);
  packed.push_back(std::byte{1});
  EXPECT_EQ(answer_with(packed), EPROTO) << "bytes after the end";
  wire::Bytes many;
  const auto one = block.size();
  while (many.size() < 100u << 20) {
    if (many.empty()) many = block;
    const auto size = many.size();
    many.resize(2 * size);
    std::copy_n(many.begin(), size, many.begin() + static_cast<std::ptrdiff_t>(size));
  }
  ASSERT_GT(one, 0u);
  EXPECT_EQ(answer_with(test::FakeTree::pack(many)), EPROTO) << "few bytes that become very many";
  link.do_now([&] { tree.on_tree = {}; });
  EXPECT_EQ(load("a"), 0);
}

TEST_F(TreeStoreTest, DestroyedStoreAnswersEverybodyOnce) {
  for (int round = 0; round < 30; ++round) {
    store = std::make_unique<TreeStore>(link, timers, log);
    open();
    std::vector<Answer> answers(7);
    store->load("a", soon(), answers[0].fn(), answers[1].fn());
    store->load("a/b", soon(), answers[2].fn(), answers[3].fn());
    store->want(Mirror::kRoot, soon(), answers[4].fn());
    store->rescan(soon(), answers[5].fn());
    store->open_root("/other", soon(), answers[6].fn());
    if (round % 3 == 0) link.lose();
    if (round % 3 == 1) (void)answers[0].get();
    store.reset();
    for (auto& answer : answers) {
      ASSERT_TRUE(answer.came());
      EXPECT_TRUE(answer.get() == 0 || answer.get() == ECANCELED) << answer.get();
    }
  }
}

TEST_F(TreeStoreTest, ListenersHearTheOrderThatWasMade) {
  open();
  Listener all, other;
  store->add_listener(&all);
  store->add_listener(&other);
  std::atomic<int> next{0};
  std::vector<std::jthread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        store->write(
            [&](Mirror& m, Changes& changes) {
              wire::Attr attr;
              const int number = next++;
              attr.dev = 1, attr.ino = 5000 + static_cast<std::uint64_t>(number), attr.mode = S_IFREG;
              return m.link(Mirror::kRoot, std::to_string(number), attr, {}, changes);
            },
            &other);
      }
    });
  }
  threads.clear();
  ASSERT_TRUE(eventually([&] { return all.count == 2u * 900; }));
  store->remove_listener(&all);
  store->remove_listener(&other);
  EXPECT_EQ(other.count, 0u);
  int expected = 0;
  for (const auto& name : all.names) {
    if (!name.empty()) {
      EXPECT_EQ(name, std::to_string(expected++));
    }
  }
}

}  // namespace
}  // namespace nearbox::sync
