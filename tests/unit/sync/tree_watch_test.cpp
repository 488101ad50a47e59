// SPDX-License-Identifier: Apache-2.0
// What events tell while a walk is under way is newer than what the walk says.
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <unistd.h>

#include <gtest/gtest.h>

#include "client/base/fault.h"
#include "sync/engine/event_stream.h"
#include "sync/engine/tree_store.h"
#include "tests/unit/sync/fake_tree.h"

namespace nearbox::sync {
namespace {

using test::eventually;
using wire::Method;
using namespace std::chrono_literals;

class TreeWatchTest : public ::testing::Test {
 protected:
  TreeWatchTest() {
    link.do_now([this] {
      tree.put("a", S_IFDIR | 0755);
      tree.put("a/stays", S_IFREG | 0644);
      tree.put("a/goes", S_IFREG | 0644);
    });
    link.serve(Method::kWatch, [this](api::CallToken token, const wire::Bytes&) {
      link.end(token, 0, wire::encode(wire::WatchReply{wire::WatchKind::kFanotify, 0, seq, 0}));
    });
    link.serve(Method::kBarrier, [this](api::CallToken token, const wire::Bytes&) {
      link.end(token, 0, wire::encode(wire::BarrierReply{seq}));
    });
    link.serve(Method::kSubscribe,
               [this](api::CallToken token, const wire::Bytes&) { subscription = token; });
    store->attach(events);
    events.start();
    link.connect(1, false);
  }
  ~TreeWatchTest() override {
    base::fault::set_file("");
    events.stop();
    store.reset();
    link.stop();
  }
  int wait(const std::function<void(TreeStore::Done)>& call) {
    const auto answer = std::make_shared<std::atomic<int>>(-1);
    call([answer](int error) { *answer = error; });
    EXPECT_TRUE(eventually([&] { return *answer != -1; }));
    return *answer;
  }
  void open() {
    ASSERT_EQ(wait([&](auto done) { store->open_root("/work", soon(), done); }), 0);
    ASSERT_EQ(wait([&](auto done) { store->load("a", soon(), {}, done); }), 0);
    ASSERT_EQ(barrier(), 0);
  }
  int barrier() {
    return wait([&](auto done) { store->barrier(soon(), done); });
  }
  static TreeStore::Deadline soon() { return std::chrono::steady_clock::now() + 20s; }
  void tell(std::vector<wire::NameState> states) {  // on the link thread
    wire::Event event;
    event.seq = ++seq;
    event.kind = wire::EventKind::kChanged;
    event.body = wire::encode(wire::Changed{8, std::move(states)});
    const auto body = wire::encode(event);
    const auto size = static_cast<std::uint32_t>(body.size());
    wire::Bytes out(sizeof size);
    std::memcpy(out.data(), &size, sizeof size);
    out.insert(out.end(), body.begin(), body.end());
    (void)link.chunk(subscription, out);
  }
  NodeIndex at(const std::string& path) {
    return store->read([&](const Mirror& m) { return m.walk(Mirror::kRoot, path); });
  }
  // A walk of "a" is asked for, the agent lists it, then things change and are told, then the listing
  // arrives.
  void race() {
    std::optional<api::CallToken> walking;
    wire::Bytes listed;
    link.do_now([&] {
      tree.on_tree = [&](api::CallToken token, const wire::Tree&) {
        wire::TreeEncoder encoder;
        for (const auto& block : tree.blocks("a")) encoder.add(block, listed);
        walking = token;
        return true;
      };
    });
    store->look_again(at("a"));
    ASSERT_TRUE(eventually([&] {
      bool there = false;
      link.do_now([&] { there = walking.has_value(); });
      return there;
    }));
    link.do_now([&] {
      const auto dir = tree.nodes.at("a");
      const wire::NodeId id{dir.dev, dir.ino};
      tree.remove("a/goes");
      auto& stays = tree.nodes.at("a/stays");
      stays.mode = S_IFREG | 0600;
      const auto comes = tree.put("a/comes", S_IFREG | 0644);
      tell({{id, "stays", 0, stays, {}}, {id, "comes", 0, comes, {}}, {id, "goes", 0, {}, {}}});
    });
    ASSERT_TRUE(eventually([&] { return at("a/comes") != kNoNode; }));
    link.do_now([&] {
      tree.on_tree = [](api::CallToken, const wire::Tree&) { return true; };  // nothing puts it right
      link.chunk(*walking, test::FakeTree::pack(listed));
      link.end(*walking, 0, wire::encode(wire::TreeReply{}));
    });
    ASSERT_TRUE(eventually([&] { return store->watch_status().looking_again == 0; }));
  }

  base::Logger log{2, base::LogLevel::kOff};
  base::Timers timers;
  test::FakeLink link{1};
  test::FakeTree tree{link};
  EventStream events{link, log};
  std::unique_ptr<TreeStore> store = std::make_unique<TreeStore>(link, timers, log);
  std::uint64_t seq = 0;
  api::CallToken subscription{};
};

TEST_F(TreeWatchTest, AListingThatIsOlderThanWhatWasTold) {
  open();
  race();
  EXPECT_NE(at("a/comes"), kNoNode);
  EXPECT_EQ(at("a/goes"), kNoNode);
  EXPECT_EQ(store->read([&](const Mirror& m) { return m.attr(m.walk(Mirror::kRoot, "a/stays")).mode; }),
            static_cast<std::uint32_t>(S_IFREG | 0600));
}

// Without the care for that: the mirror would go back in time.
TEST_F(TreeWatchTest, AListingThatIsOlderWinsWithoutTheLogOfWhatWasTold) {
  open();
  const auto dir = std::filesystem::path(::testing::TempDir()) / ("newer-" + std::to_string(::getpid()));
  std::filesystem::create_directory(dir);
  std::ofstream(dir / "faults") << "sync.no_newer\n";
  base::fault::set_file((dir / "faults").string());
  race();
  EXPECT_EQ(at("a/comes"), kNoNode);
  EXPECT_NE(at("a/goes"), kNoNode);
  std::filesystem::remove_all(dir);
}

// The number of a file was given to another one, and an event of the file itself is the first to say so.
TEST_F(TreeWatchTest, AnotherFileWithTheNumberOfOneThatIsGone) {
  link.do_now([&] { tree.nodes.at("a/stays").birth = 5; });
  open();
  const auto old = at("a/stays");
  store->write([&](Mirror& m, Changes&) { m.pin(old); });
  link.do_now([&] {
    auto& stays = tree.nodes.at("a/stays");
    stays.birth = 6;
    stays.ctime_ns += 1000;
    tell({{wire::identity(stays), "", 0, stays, {}}});
  });
  ASSERT_EQ(barrier(), 0);
  EXPECT_NE(at("a/stays"), kNoNode) << "its directory was listed again";
  EXPECT_NE(at("a/stays"), old);
  EXPECT_FALSE(store->read([&](const Mirror& m) { return m.alive(old); }));
  EXPECT_EQ(store->read([&](const Mirror& m) { return m.listing(m.walk(Mirror::kRoot, "a")); }),
            Listing::kComplete);
}

// What is told late of the file that is gone does not take the new one's place.
TEST_F(TreeWatchTest, TheFileThatIsGoneIsToldLate) {
  link.do_now([&] { tree.nodes.at("a/stays").birth = 6; });
  open();
  const auto node = at("a/stays");
  link.do_now([&] {
    auto gone = tree.nodes.at("a/stays");
    gone.birth = 5;
    gone.ctime_ns -= 1;
    tell({{wire::identity(gone), "", 0, gone, {}},
          {wire::identity(tree.nodes.at("a")), "stays", 0, gone, {}},
          {wire::identity(tree.nodes.at("a")), "was", 0, gone, {}}});
  });
  ASSERT_EQ(barrier(), 0);
  EXPECT_EQ(at("a/stays"), node);
  EXPECT_EQ(at("a/was"), kNoNode);
  EXPECT_EQ(store->read([&](const Mirror& m) { return m.attr(node).birth; }), 6u);
}

// The echo of an own mkdir comes when the directory has been used: a listing that is being read goes on.
TEST_F(TreeWatchTest, ADirectoryThatIsListedStaysWhenItIsToldAsFresh) {
  link.do_now([&] {
    tree.put("a/made", S_IFDIR | 0755);
    tree.put("a/made/file", S_IFREG | 0644);
  });
  open();
  const auto cookie = [&] {
    const auto dir = at("a/made"), file = at("a/made/file");
    return store->read([&](const Mirror& m) { return m.cookie(dir, file); });
  };
  const auto before = cookie();
  ASSERT_NE(before, 0U);
  link.do_now([&] {
    const auto dir = tree.nodes.at("a"), made = tree.nodes.at("a/made");
    tell({{{dir.dev, dir.ino}, "made", wire::kNameFresh, made, {}}});
    tell({{{made.dev, made.ino}, "file", 0, tree.nodes.at("a/made/file"), {}},
          {{made.dev, made.ino}, "", wire::kNameListed, made, {}}});
  });
  ASSERT_EQ(barrier(), 0);
  EXPECT_EQ(cookie(), before);
  const auto made = at("a/made");
  EXPECT_EQ(store->read([&](const Mirror& m) { return m.listing(made); }), Listing::kComplete);
}

}  // namespace
}  // namespace nearbox::sync
