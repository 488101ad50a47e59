// SPDX-License-Identifier: Apache-2.0
// A tree that changes while it is walked, watched and operated on, and the mirror that must end up like it.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>

#include <gtest/gtest.h>

#include "sync/engine/event_stream.h"
#include "sync/engine/tree_store.h"
#include "tests/unit/sync/fake_tree.h"

namespace nearbox::sync {
namespace {

using test::eventually;
using wire::Attr;
using wire::Method;
using wire::NodeId;
using namespace std::chrono_literals;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

NodeId id_of(const Attr& attr) { return {attr.dev, attr.ino}; }
std::string parent_of(const std::string& path) { return path.substr(0, path.rfind('/')); }
std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

wire::Bytes record(const wire::Event& event) {
  const auto body = wire::encode(event);
  const auto size = static_cast<std::uint32_t>(body.size());
  wire::Bytes out(sizeof size);
  std::memcpy(out.data(), &size, sizeof size);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

// The sandbox and its agent below "a". Everything runs on the link thread.
//
// Looks at what changed some time after it did, and sends what was seen some time after that; walks go on
// meanwhile, directory by directory.
class World {
 public:
  World(test::FakeLink& link, test::FakeTree& tree, std::uint64_t with)
      : link_(link), tree_(tree), rng_(with) {
    link_.serve(Method::kWatch, [this](api::CallToken token, const wire::Bytes&) {
      watching_ = true;
      link_.end(token, 0, wire::encode(wire::WatchReply{wire::WatchKind::kInotify, 0, events_.size(), 1}));
    });
    link_.serve(Method::kBarrier, [this](api::CallToken token, const wire::Bytes&) {
      while (!hints_.empty()) look();
      link_.end(token, 0, wire::encode(wire::BarrierReply{events_.size()}));
    });
    link_.serve(Method::kSubscribe, [this](api::CallToken token, const wire::Bytes& payload) {
      subscription_ = token;
      sent_ = wire::decode<wire::Subscribe>(payload)->after_seq;
    });
    tree_.on_tree = [this](api::CallToken token, const wire::Tree& ask) {
      if (!tree_.nodes.contains(ask.path)) return false;
      Walk walk{token, ask, {ask.path}, {}, {}};
      walks_.push_back(std::move(walk));
      return true;
    };
  }

  void step() {
    switch (rng_() % 10) {
      case 0:
      case 1:
      case 2:
        return change();
      case 3:
      case 4:
        return hints_.empty() ? change() : look();
      case 5:
      case 6:
        return send();
      case 7:
        return loses_ && rng_() % 40 == 0 ? lose() : walk();
      case 8:
        return ops_.empty() ? begin_op() : finish_op();
      default:
        return walk();
    }
  }
  bool idle() const { return walks_.empty() && ops_.empty(); }
  void drain() {  // everything that is under way comes through
    while (!walks_.empty()) walk();
    while (!ops_.empty()) finish_op();
    send_all();
  }
  void send_all() {
    while (sent_ < events_.size() && link_.on_wire(subscription_)) send();
  }

  bool loses_ = false;  // events
  // The client's side of an own operation; set by the test. Created nodes are told by attr, else removed.
  std::function<void(const std::string& dir, const std::string& name)> op_begins;
  std::function<void(std::uint64_t op)> op_applied;

  struct Op {
    std::uint64_t number = 0;
    NodeId dir;
    std::string name;
    bool make = false;
    bool applied = false;
    std::size_t looks = 0;  // when it was applied
    Attr attr;
    int error = 0;
  };
  std::map<std::uint64_t, Op> done_ops;

 private:
  struct Hint {
    NodeId dir;
    std::vector<std::string> names;
    std::vector<NodeId> dirs;  // of names
    bool fresh = false;
  };
  struct Walk {
    api::CallToken token;
    wire::Tree ask;
    std::deque<std::string> left;
    wire::Bytes bytes;
    wire::TreeEncoder encoder;
  };

  std::vector<std::string> paths(bool directories) {
    std::vector<std::string> all;
    for (const auto& [path, attr] : tree_.nodes) {
      if (path != "a" && !path.starts_with("a/")) continue;
      if (S_ISDIR(attr.mode) == directories && (directories || !path.empty())) all.push_back(path);
    }
    return all;
  }
  std::string any(bool directory) {
    const auto all = paths(directory);
    return all.empty() ? "" : all[rng_() % all.size()];
  }
  std::string any_name(const std::string& dir) { return dir + "/" + std::string(1, "abcdef"[rng_() % 6]); }
  std::optional<std::string> path_of(NodeId dir) {
    for (const auto& [path, attr] : tree_.nodes) {
      if (id_of(attr) == dir) return path;
    }
    return std::nullopt;
  }
  std::size_t depth(const std::string& path) {
    return static_cast<std::size_t>(std::count(path.begin(), path.end(), '/'));
  }
  void hint(const std::vector<std::string>& changed, bool fresh = false) {
    if (!watching_) return;
    Hint one;
    one.fresh = fresh;
    for (const auto& path : changed) {
      one.dirs.push_back(id_of(tree_.nodes.at(parent_of(path))));
      one.names.push_back(name_of(path));
    }
    hints_.push_back(one);
  }
  Attr& make(const std::string& path, bool directory) {
    auto& attr = tree_.put(path, directory ? S_IFDIR | 0755 : S_IFREG | 0644);
    attr.version = ++version_;
    return attr;
  }

  // ---- changes of others
  void change() {
    const auto dir = any(true);
    const auto path = any_name(dir);
    switch (rng_() % 6) {
      case 0:
      case 1:
        if (tree_.nodes.contains(path)) return;
        make(path, false);
        return hint({path});
      case 2:
        if (tree_.nodes.contains(path) || depth(path) > 4) return;
        make(path, true);
        return hint({path}, true);
      case 3: {
        if (!tree_.nodes.contains(path)) return;
        std::vector<std::string> gone;
        for (const auto& [below, attr] : tree_.nodes) {
          if (below.starts_with(path + "/")) gone.push_back(below);
        }
        tree_.remove(path);
        return hint({path});
      }
      case 4: {
        const auto file = any(false);
        if (file.empty()) return;
        auto& attr = tree_.nodes.at(file);
        attr.version = ++version_;
        attr.size = rng_() % 100;
        return hint({file});
      }
      default:
        return rename(rng_() % 2 == 0 ? any(false) : any(true), path);
    }
  }
  void rename(const std::string& from, const std::string& to) {
    if (from.empty() || from == "a" || from == to || to.starts_with(from + "/")) return;
    if (from.starts_with(to + "/")) return;
    const auto found = tree_.nodes.find(to);
    if (found != tree_.nodes.end()) {
      if (S_ISDIR(found->second.mode)) return;
      if (S_ISDIR(tree_.nodes.at(from).mode)) return;
      tree_.nodes.erase(found);
    }
    std::map<std::string, Attr> moved;
    for (const auto& [path, attr] : tree_.nodes) {
      if (path == from || path.starts_with(from + "/")) moved[to + path.substr(from.size())] = attr;
    }
    const auto from_dir = id_of(tree_.nodes.at(parent_of(from)));
    tree_.remove(from);
    tree_.nodes.merge(moved);
    if (!watching_) return;
    Hint one;
    one.dirs = {id_of(tree_.nodes.at(parent_of(to))), from_dir};
    one.names = {name_of(to), name_of(from)};
    hints_.push_back(one);
  }

  // ---- looking and telling
  wire::NameState state(NodeId dir, const std::string& path) {
    wire::NameState one;
    one.dir = dir, one.name = name_of(path);
    if (const auto found = tree_.nodes.find(path); found != tree_.nodes.end()) one.attr = found->second;
    return one;
  }
  void list(const std::string& dir, std::vector<wire::NameState>& out) {
    const auto id = id_of(tree_.nodes.at(dir));
    for (const auto& name : tree_.names(dir)) {
      auto one = state(id, dir + "/" + name);
      const bool directory = S_ISDIR(one.attr.mode);
      if (directory) one.flags = wire::kNameFresh;
      out.push_back(one);
      if (directory) list(dir + "/" + name, out);
    }
    wire::NameState end;
    end.dir = id, end.flags = wire::kNameListed, end.attr = tree_.nodes.at(dir);
    out.push_back(end);
  }
  void look() {
    const auto at = rng_() % std::min<std::size_t>(hints_.size(), 3);  // not in order
    const auto one = hints_[at];
    hints_.erase(hints_.begin() + static_cast<std::ptrdiff_t>(at));
    ++looks_;
    std::vector<wire::NameState> there, gone;
    for (std::size_t i = 0; i < one.names.size(); ++i) {
      const auto dir = path_of(one.dirs[i]);
      if (!dir) continue;
      auto seen = state(one.dirs[i], *dir + "/" + one.names[i]);
      if (seen.attr.ino == 0) {
        gone.push_back(seen);
        continue;
      }
      const bool fresh = one.fresh && S_ISDIR(seen.attr.mode);
      if (fresh) seen.flags = wire::kNameFresh;
      there.push_back(seen);
      if (fresh) list(*dir + "/" + one.names[i], there);
    }
    there.insert(there.end(), gone.begin(), gone.end());
    while (!there.empty()) {  // in one event or several
      wire::Changed changed;
      const auto n = 1 + rng_() % there.size();
      changed.states.assign(there.begin(), there.begin() + static_cast<std::ptrdiff_t>(n));
      there.erase(there.begin(), there.begin() + static_cast<std::ptrdiff_t>(n));
      emit(wire::EventKind::kChanged, wire::encode(changed));
    }
  }
  void lose() {
    if (!watching_) return;
    hints_.clear();
    const auto dir = any(true);
    const bool whole = rng_() % 2 == 0;
    wire::Lost lost;
    lost.root = tree_.root + 1;
    lost.content = true;
    (void)whole;
    emit(wire::EventKind::kLost, wire::encode(lost));
  }
  void emit(wire::EventKind kind, wire::Bytes body) {
    events_.push_back({events_.size() + 1, kind, std::move(body)});
  }
  void send() {
    if (sent_ < events_.size() && link_.on_wire(subscription_)) {
      (void)link_.chunk(subscription_, record(events_[sent_++]));
    }
  }

  // ---- walks
  void walk() {
    if (walks_.empty()) return;
    auto& one = walks_[rng_() % walks_.size()];
    if (!link_.on_wire(one.token)) return drop(one.token);
    if (!one.left.empty()) {
      const auto dir = one.left.front();
      one.left.pop_front();
      if (!tree_.nodes.contains(dir) || !S_ISDIR(tree_.nodes.at(dir).mode)) return;
      for (const auto& block : tree_.blocks(dir)) one.encoder.add(block, one.bytes);
      for (const auto& name : tree_.names(dir)) {
        const auto path = dir + "/" + name;
        if (!S_ISDIR(tree_.nodes.at(path).mode)) continue;
        if (one.ask.depth == 0) {
          one.left.push_back(path);
        } else {
          one.encoder.add({path, tree_.nodes.at(path), wire::kTreeNotExpanded, 0, {}}, one.bytes);
        }
      }
      return;
    }
    const auto token = one.token;
    const auto bytes = test::FakeTree::pack(one.bytes);
    drop(token);
    if (link_.chunk(token, bytes)) link_.end(token, 0, wire::encode(wire::TreeReply{}));
  }
  void drop(api::CallToken token) {
    std::erase_if(walks_, [&](const Walk& walk) { return walk.token == token; });
  }

  // ---- own operations: they make and remove files
  void begin_op() {
    const auto dir = any(true);
    const auto path = any_name(dir);
    const bool make_it = !tree_.nodes.contains(path);
    if (!make_it && S_ISDIR(tree_.nodes.at(path).mode)) return;
    Op op;
    op.number = ++next_op_;
    op.dir = id_of(tree_.nodes.at(dir)), op.name = name_of(path), op.make = make_it;
    next_name_ = op.name;
    if (!op_accepts(op.dir)) return;
    ops_.push_back(op);
  }
  void finish_op() {
    auto& op = ops_.front();
    if (!op.applied) {
      op.applied = true;
      op.looks = looks_;
      const auto dir = path_of(op.dir);
      const auto path = dir ? *dir + "/" + op.name : "";
      if (!dir) {
        op.error = ENOENT;
      } else if (op.make) {
        tree_.nodes.contains(path) ? op.error = EEXIST : (op.attr = make(path, false), 0);
      } else if (!tree_.nodes.contains(path) || S_ISDIR(tree_.nodes.at(path).mode)) {
        op.error = ENOENT;
      } else {
        tree_.remove(path);
      }
      return;
    }
    wire::OpDone done;
    done.op_id = op.number, done.error = op.error, done.attr = op.attr;
    done_ops[op.number] = op;
    emit(wire::EventKind::kOpDone, wire::encode(done));
    if (op.looks != looks_) {  // somebody looked meanwhile: once more, after the answer
      if (path_of(op.dir)) hints_.push_back({op.dir, {op.name}, {op.dir}, false});
    }
    ops_.pop_front();
  }

 public:
  std::function<bool(NodeId dir)> op_accepts = [](NodeId) { return false; };
  std::uint64_t next_op_ = 0;
  std::string next_name_;

 private:
  test::FakeLink& link_;
  test::FakeTree& tree_;
  std::mt19937_64 rng_;
  std::vector<wire::Event> events_;
  std::vector<Hint> hints_;
  std::vector<Walk> walks_;
  std::deque<Op> ops_;
  api::CallToken subscription_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t version_ = 0;
  std::size_t looks_ = 0;
  bool watching_ = false;
};

class WatchModel : public ::testing::Test {
 protected:
  struct Case {
    explicit Case(std::uint64_t with)
        : by_name(with % 2 == 0), link(with), tree(link), world(link, tree, with) {
      link.do_now([this] { tree.put("a", S_IFDIR | 0755); });
      store.attach(events);
      events.on_op_done([this](const wire::OpDone& done) { op_done(done); });
      world.op_accepts = [this](NodeId dir) {
        const auto node = store.write([&](Mirror& m, Changes&) {
          m.pin(m.find(dir));  // as a session does: the number stays this directory's
          return m.find(dir);
        });
        if (node == kNoNode) return false;
        pending[world.next_op_] = node;
        by_name ? store.begin_operation(node, dir, world.next_name_) : store.begin_operation(node);
        return true;
      };
      events.start();
    }
    ~Case() {
      events.stop();
      held.reset();
      link.stop();
    }
    void op_done(const wire::OpDone& done) {
      const auto op = world.done_ops.at(done.op_id);
      const auto dir = pending.at(done.op_id);
      store.write([&](Mirror& mirror, Changes& changes) {
        const auto at = mirror.attr(dir);
        if (done.error != 0 || !mirror.alive(dir) || id_of(at) != op.dir) return;
        if (op.make) {
          mirror.link(dir, op.name, op.attr, {}, changes);
        } else {
          mirror.unlink(dir, op.name, changes);
        }
      });
      if (!by_name) {
        store.end_operation(dir);
      } else if (store.end_operation(dir, op.dir, op.name, done.error != 0) && done.error != 0) {
        store.look_again(dir);
      }
      store.write([&](Mirror& mirror, Changes&) { mirror.unpin(dir); });
    }
    bool wait(const std::shared_ptr<std::atomic<int>>& answer) {
      return eventually([&] {
        link.do_now([this] { world.drain(); });
        return *answer != -1;
      });
    }
    TreeStore::Done into(const std::shared_ptr<std::atomic<int>>& answer) {
      return [answer](int error) { *answer = error; };
    }
    void run(int steps) {
      const auto soon = std::chrono::steady_clock::now() + 60s;
      auto opened = std::make_shared<std::atomic<int>>(-1);
      auto loaded = std::make_shared<std::atomic<int>>(-1);
      link.connect(1, false);
      store.open_root("/work", soon, into(opened));
      ASSERT_TRUE(wait(opened));
      link.do_now([&] {
        for (int i = 0; i < 60; ++i) world.step();
      });
      store.load("a", soon, {}, into(loaded));
      for (int i = 0; i < steps; ++i) link.do_now([&] { world.step(); });
      ASSERT_TRUE(wait(loaded));
      ASSERT_EQ(*loaded, 0);
      for (int i = 0; i < steps; ++i) link.do_now([&] { world.step(); });
      auto passed = std::make_shared<std::atomic<int>>(-1);
      link.do_now([&] { world.drain(); });
      store.barrier(soon, into(passed));
      ASSERT_TRUE(wait(passed));
      ASSERT_EQ(*passed, 0);
    }
    // What is not known, or in doubt, is asked for when somebody looks at it.
    void look_at_all() {
      for (bool more = true; more;) {
        std::vector<NodeIndex> dirs;
        store.read([&](const Mirror& m) {
          std::vector<NodeIndex> left{m.walk(Mirror::kRoot, "a")};
          while (!left.empty()) {
            const auto dir = left.back();
            left.pop_back();
            if (m.listing(dir) != Listing::kComplete) dirs.push_back(dir);
            m.list(dir, 0, [&](std::uint64_t, std::string_view, NodeIndex node) {
              if (S_ISDIR(m.attr(node).mode)) left.push_back(node);
              return true;
            });
          }
        });
        more = !dirs.empty();
        const auto pin = [&](void (Mirror::*change)(NodeIndex, std::uint64_t)) {  // numbers stay theirs
          store.write([&](Mirror& m, Changes&) {
            for (const auto dir : dirs) (m.*change)(dir, 1);
          });
        };
        pin(&Mirror::pin);
        for (const auto dir : dirs) {
          auto known = std::make_shared<std::atomic<int>>(-1);
          store.want(dir, std::chrono::steady_clock::now() + 20s, into(known));
          ASSERT_TRUE(wait(known));
          ASSERT_TRUE(*known == 0 || *known == ENOENT) << *known;
        }
        pin(&Mirror::unpin);
      }
    }
    void check() {
      look_at_all();
      auto passed = std::make_shared<std::atomic<int>>(-1);
      store.barrier(std::chrono::steady_clock::now() + 20s, into(passed));
      ASSERT_TRUE(wait(passed));
      link.do_now([&] {
        store.read([&](const Mirror& m) {
          for (const auto& [path, attr] : tree.nodes) {
            if (path != "a" && !path.starts_with("a/")) continue;
            const auto node = m.walk(Mirror::kRoot, path);
            ASSERT_NE(node, kNoNode) << path;
            EXPECT_EQ(m.attr(node).ino, attr.ino) << path;
            EXPECT_EQ(m.attr(node).size, attr.size) << path;
            EXPECT_EQ(m.attr(node).version, attr.version) << path;
            if (!S_ISDIR(attr.mode)) continue;
            EXPECT_EQ(m.listing(node), Listing::kComplete) << path;
            const auto names = tree.names(path);
            m.list(node, 0, [&](std::uint64_t, std::string_view name, NodeIndex) {
              EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << path << "/" << name;
              return true;
            });
          }
        });
      });
    }

    const bool by_name;  // operations say which name they change
    base::Logger log{2, base::LogLevel::kOff};
    base::Timers timers;
    test::FakeLink link;
    test::FakeTree tree;
    World world;
    std::map<std::uint64_t, NodeIndex> pending;
    EventStream events{link, log};
    std::unique_ptr<TreeStore> held = std::make_unique<TreeStore>(link, timers, log);
    TreeStore& store = *held;
  };
};

TEST_F(WatchModel, WalksEventsAndOperationsInAnyOrder) {
  for (std::uint64_t round = 0; round < 150; ++round) {
    SCOPED_TRACE("seed " + std::to_string(seed() + round));
    Case one(seed() + round);
    one.run(150);
    one.check();
    if (HasFailure()) return;
  }
}

TEST_F(WatchModel, AndLosses) {
  for (std::uint64_t round = 0; round < 100; ++round) {
    SCOPED_TRACE("seed " + std::to_string(seed() + round));
    Case one(seed() + round);
    one.world.loses_ = true;
    one.run(300);
    one.check();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace nearbox::sync
