// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <map>
#include <thread>

#include "tests/unit/agent/watcher_fixture.h"
#include "tools/agent/watch/done_ops.h"

// Operations of this agent itself, in the order in which their client is told of them.
namespace nearbox::agent {
namespace {

namespace fs = std::filesystem;
using test::other;
using test::put;
using OwnOpsTest = test::WatcherTest;

wire::NameState state_of(wire::NodeId dir, const std::string& name, std::uint64_t ino) {
  wire::NameState state;
  state.dir = dir;
  state.name = name;
  state.attr.dev = 1;
  state.attr.ino = ino;
  return state;
}

TEST(DoneOps, WhatWasSeenBeforeIsOvertaken) {
  DoneOps done;
  const int owner = 0;
  const int stranger = 0;
  const wire::NodeId dir{1, 10};
  const auto before = done.now();
  done.record(&owner, {dir}, {"a", "b"}, {{1, 20}});
  EXPECT_TRUE(done.overtook(&owner, state_of(dir, "a", 20), before));
  EXPECT_TRUE(done.overtook(&owner, state_of(dir, "b", 0), before));
  EXPECT_TRUE(done.overtook(&owner, state_of(dir, "", 0), before));
  EXPECT_TRUE(done.overtook(&owner, state_of({1, 11}, "elsewhere", 20), before));  // the node
  EXPECT_TRUE(done.overtook(&owner, state_of({1, 11}, "dir", 10), before));
  EXPECT_FALSE(done.overtook(&owner, state_of(dir, "c", 21), before));
  EXPECT_FALSE(done.overtook(&owner, state_of({1, 11}, "a", 21), before));
  EXPECT_FALSE(done.overtook(&stranger, state_of(dir, "a", 20), before));
  EXPECT_FALSE(done.overtook(&owner, state_of(dir, "a", 20), done.now()));
  const auto later = done.now();
  done.record(&owner, {}, {"a"}, {{1, 20}});  // no name changed
  EXPECT_FALSE(done.overtook(&owner, state_of(dir, "b", 21), later));
  EXPECT_TRUE(done.overtook(&owner, state_of(dir, "a", 20), later));
  done.forget();
  for (std::size_t i = 0; i <= kMaxDoneKeys; ++i) done.record(&owner, {}, {}, {{2, i + 1}});
  EXPECT_TRUE(done.overtook(&owner, state_of(dir, "c", 21), later));  // too many to tell
  EXPECT_FALSE(done.overtook(&owner, state_of(dir, "c", 21), done.now()));
}

// One client's operations on names of its own, each recorded before the next begins. What its events say of a
// name after an operation's record is what that operation left or the next one: nothing older.
class Sequence {
 public:
  Sequence(Watcher& watcher, test::Client& client, const std::string& top)
      : watcher_(watcher), client_(client), top_(top) {}

  void op(std::vector<std::string> paths, const std::function<void()>& action, bool made = false) {
    const auto begun = watcher_.op_begins();
    action();
    OwnChange change{client_.root, paths, {}, made, {}};
    std::map<std::string, std::uint64_t> left;
    for (const auto& path : paths) {
      const auto st = stat_at(AT_FDCWD, (top_ + "/" + path).c_str());
      left[path] = st ? st->st_ino : 0;
      if (st) change.attr = make_attr(*st);
      const auto slash = path.rfind('/');
      const auto up = slash == std::string::npos ? top_ : top_ + "/" + path.substr(0, slash);
      if (const auto dir = stat_at(AT_FDCWD, up.c_str())) change.dirs.push_back(node_of(*dir));
    }
    ops_.push_back(left);
    watcher_.op_applied(&client_, change);
    watcher_.op_recorded(&client_, change,
                         [&] { (void)client_.log.append(wire::EventKind::kOpDone, wire::Bytes{}); });
    watcher_.op_told(begun, change);
  }

  // A line for what was told too late.
  std::string check(wire::NodeId dir) const {
    std::map<std::string, std::uint64_t> now;
    std::size_t done = 0;
    std::string wrong;
    const auto next = [&](const std::string& name) {
      const auto it =
          done < ops_.size() ? ops_[done].find(name) : std::map<std::string, std::uint64_t>::const_iterator{};
      return done < ops_.size() && it != ops_[done].end() ? it->second : ~0ULL;
    };
    for (const auto& event : client_.events) {
      if (event.kind == wire::EventKind::kOpDone) {
        for (const auto& [name, ino] : ops_[done]) now[name] = ino;
        ++done;
        continue;
      }
      const auto changed = wire::decode<wire::Changed>(event.body);
      if (!changed) continue;
      for (const auto& state : changed->states) {
        if (state.dir != dir || state.name.empty() || now.count(state.name) == 0) continue;
        if (state.attr.ino == now[state.name] || state.attr.ino == next(state.name)) continue;
        wrong += "after operation " + std::to_string(done) + ": " + state.name + " is " +
                 std::to_string(state.attr.ino) + "\n";
      }
    }
    return wrong;
  }

 private:
  Watcher& watcher_;
  test::Client& client_;
  const std::string top_;
  std::vector<std::map<std::string, std::uint64_t>> ops_;
};

TEST_P(OwnOpsTest, NothingOlderIsToldAfterTheRecord) {
  test::Client onlooker(watcher, top);  // for it what the first does is looked at
  Sequence sequence(watcher, *client, top);
  std::atomic<bool> stop{false};
  {
    // Looks at any time, also at the names in question.
    const std::jthread looks([&] {
      while (!stop) {
        if (!watcher.barrier(&onlooker, 1, test::Client::soon())) break;
      }
    });
    const std::jthread noise([&] {
      for (int i = 0; !stop; ++i) {
        const auto name = *this / ("n" + std::to_string(i % 50));
        ASSERT_TRUE(other([&] {
          for (int k = 0; k < 20; ++k)
            put(name, "noise"), ::chmod((*this / "a").c_str(), 0640), ::unlink(name.c_str());
        }));
      }
    });
    const auto at = [&](const char* name) { return *this / name; };
    for (int i = 0; i < 500; ++i) {
      sequence.op({"a"}, [&] { put(at("a"), "own"); });
      sequence.op({"b", "a"}, [&] { fs::rename(at("a"), at("b")); });
      sequence.op({"a", "b"}, [&] { fs::rename(at("b"), at("a")); });
      sequence.op({"a"}, [&] { fs::remove(at("a")); });
      sequence.op(
          {"d"}, [&] { fs::create_directory(at("d")); }, true);
      sequence.op({"d"}, [&] { fs::remove(at("d")); });
    }
    stop = true;
  }
  client->settle();
  struct stat st {};
  ASSERT_EQ(::stat(top.c_str(), &st), 0);
  EXPECT_EQ(sequence.check(node_of(st)), "");
  EXPECT_EQ(client->model->losts, 0U);
  onlooker.settle();
  EXPECT_EQ(onlooker.model->differences(), "");
}

// A name that comes while an own operation writes to its file is told as ever, attributes by each barrier and
// when the operation ends.
TEST_P(OwnOpsTest, WhatOthersDoBesideAnOwnWriteIsTold) {
  act([&] { put(*this / "a", "x"), put(*this / "d", "x"); });
  const auto a = stat_at(AT_FDCWD, (*this / "a").c_str());
  const auto d = stat_at(AT_FDCWD, (*this / "d").c_str());
  ASSERT_TRUE(a && d);
  std::uint64_t before = 0;
  {
    const Watcher::Writing one(watcher, client.get(), node_of(*a));
    const Watcher::Writing two(watcher, client.get(), node_of(*d));
    act([&] { ::rename((*this / "a").c_str(), (*this / "b").c_str()); });
    act([&] { ::chmod((*this / "b").c_str(), 0600); });
    act([&] { ::chmod((*this / "d").c_str(), 0600); });
    before = client->log.last_seq();
    ASSERT_TRUE(other([&] { ::chmod((*this / "d").c_str(), 0640); }));
    // It was looked at when what comes after it is told.
    ASSERT_TRUE(other([&] { ::mkdir((*this / "c").c_str(), 0755); }));
    ASSERT_TRUE(test::eventually([&] { return client->log.last_seq() > before; }));
    before = client->log.last_seq();
  }
  EXPECT_TRUE(test::eventually([&] { return client->log.last_seq() > before; }));
  client->settle();
  EXPECT_EQ(client->model->differences(), "");
}

INSTANTIATE_TEST_SUITE_P(Kinds, OwnOpsTest, test::kinds(), test::kind_name);

}  // namespace
}  // namespace nearbox::agent
