// SPDX-License-Identifier: Apache-2.0
#include "fs/core/prefetch.h"

#include <map>
#include <mutex>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "tests/unit/sync/fake_link.h"

namespace nearbox::fs {
namespace {

using namespace std::chrono_literals;
using sync::NodeIndex;
using sync::test::eventually;
using sync::test::FakeLink;

std::byte content(std::uint64_t ino, std::uint64_t version, std::uint64_t offset) {
  return static_cast<std::byte>((ino * 131 + version * 17 + offset) & 0xff);
}

// A tree of small files, an agent that serves them, a cache and who guesses for it.
class PrefetchTest : public ::testing::Test {
 protected:
  PrefetchTest() {
    link.serve(wire::Method::kRead, [this](api::CallToken t, const wire::Bytes& b) { serve_read(t, b); });
    link.serve(wire::Method::kReadMany, [this](api::CallToken t, const wire::Bytes& b) { serve_many(t, b); });
    link.connect(1, false);
    BlockCacheHooks hooks;
    hooks.locate = [this](NodeIndex, const wire::NodeId& id) -> std::optional<wire::PathCall> {
      wire::PathCall call;
      call.root = 1;
      call.path = std::to_string(id.ino);
      call.expect = id;
      return call;
    };
    hooks.refresh = [](NodeIndex, const std::function<void()>& done) { done(); };
    hooks.changed = [this](NodeIndex node, const wire::Attr& attr) {
      tree.write([&](sync::Mirror& m, sync::Changes& changes) { m.set_attr(node, attr, changes); });
    };
    hooks.later = [this](std::chrono::milliseconds, std::function<void()> fn) {
      const std::lock_guard lock(mu);
      later.push_back(std::move(fn));
    };
    cache = std::make_unique<BlockCache>(link, std::move(hooks));
    prefetch = std::make_unique<Prefetcher>(tree, *cache, link, options);
    tree.write([&](sync::Mirror& m, sync::Changes& changes) {
      wire::Attr attr;
      attr.ino = 1;
      attr.dev = 1;
      attr.mode = 040755;
      m.set_root(attr, changes);
    });
  }
  ~PrefetchTest() override { cache->close(); }

  NodeIndex add(NodeIndex dir, const std::string& name, std::uint64_t size, bool directory = false) {
    wire::Attr attr;
    attr.ino = ++last_ino;
    attr.dev = 1;
    attr.mode = directory ? 040755 : 0100644;
    attr.size = size;
    attr.version = 1;
    if (!directory) {
      const std::lock_guard lock(mu);
      served[attr.ino] = attr;
    }
    return tree.write([&](sync::Mirror& m, sync::Changes& changes) {
      const auto node = m.link(dir, name, attr, {}, changes);
      if (directory) m.set_listing(node, sync::Listing::kComplete);
      m.set_listing(dir, sync::Listing::kComplete);
      return node;
    });
  }
  // Directories of `files` files each, as many again below the first of them.
  void grow(NodeIndex dir, int directories, int files, int depth) {
    for (int i = 0; i < files; ++i) {
      order.push_back(add(dir, "f" + std::to_string(i), 500 + static_cast<std::uint64_t>(i) * 97));
    }
    if (depth == 0) return;
    for (int i = 0; i < directories; ++i) {
      grow(add(dir, "d" + std::to_string(i), 4096, true), directories, files, depth - 1);
    }
  }

  wire::Attr attr_of(NodeIndex node) {
    return tree.read([&](const sync::Mirror& m) { return m.attr(node); });
  }
  void serve_read(api::CallToken token, const wire::Bytes& bytes) {
    const auto call = wire::decode<wire::Read>(bytes);
    ASSERT_TRUE(call);
    const auto ino = call->at.expect.ino;
    wire::ReadReply reply;
    {
      const std::lock_guard lock(mu);
      ++reads;
      reply.attr = served[ino];
    }
    reply.eof = true;
    if (link.chunk(token, body(reply.attr))) link.end(token, 0, wire::encode(reply));
  }
  void serve_many(api::CallToken token, const wire::Bytes& bytes) {
    const auto call = wire::decode<wire::ReadMany>(bytes);
    ASSERT_TRUE(call);
    wire::Bytes out;
    wire::Writer writer(out);
    {
      const std::lock_guard lock(mu);
      if (hold) {
        held.push_back(token);
        return;
      }
    }
    for (std::uint32_t i = 0; i < call->items.size(); ++i) {
      wire::ReadManyRecord record;
      record.index = i;
      {
        const std::lock_guard lock(mu);
        record.attr = served[call->items[i].expect.ino];
      }
      record.data = body(record.attr);
      const auto encoded = wire::encode(record);
      writer.num(static_cast<std::uint32_t>(encoded.size()));
      out.insert(out.end(), encoded.begin(), encoded.end());
    }
    if (link.chunk(token, out)) link.end(token, 0);
  }
  static wire::Bytes body(const wire::Attr& attr) {
    wire::Bytes data;
    for (std::uint64_t i = 0; i < attr.size; ++i) data.push_back(content(attr.ino, attr.version, i));
    return data;
  }

  struct Got {
    std::atomic<bool> done{false};
    int error = 0;
    wire::Bytes bytes;
  };
  std::shared_ptr<Got> begin(NodeIndex node) {
    const auto attr = attr_of(node);
    auto got = std::make_shared<Got>();
    cache->read(node, attr, 0, 128 * 1024, [got](BlockCache::Data&& data) {
      got->error = data.error;
      for (const auto& piece : data.pieces) {
        const auto* from = piece.block->data() + piece.offset;
        got->bytes.insert(got->bytes.end(), from, from + piece.length);
      }
      got->done = true;
    });
    prefetch->on_read(node, attr);
    return got;
  }
  void read(NodeIndex node) {
    const auto got = begin(node);
    ASSERT_TRUE(eventually([&] { return got->done.load(); }));
    ASSERT_EQ(got->error, 0);
    const auto ino = attr_of(node).ino;
    const std::lock_guard lock(mu);
    ASSERT_EQ(got->bytes, body(served[ino]));
  }
  bool within_budget() {
    const auto stats = prefetch->stats();
    return stats.asked_bytes <= options.start_bytes + 2 * stats.read_bytes;
  }

  std::mutex mu;
  std::map<std::uint64_t, wire::Attr> served;
  std::vector<std::function<void()>> later;
  std::vector<api::CallToken> held;
  bool hold = false;
  int reads = 0;
  std::uint64_t last_ino = 1;
  std::vector<NodeIndex> order;  // as a walk meets them
  PrefetchOptions options;
  base::Logger log{2, base::LogLevel::kOff};
  FakeLink link{11};
  base::Timers timers;
  sync::TreeStore tree{link, timers, log};
  std::unique_ptr<BlockCache> cache;
  std::unique_ptr<Prefetcher> prefetch;
};

TEST_F(PrefetchTest, AWalkFindsItsFilesFetched) {
  grow(sync::Mirror::kRoot, 3, 20, 3);  // 800 files in 40 directories
  for (const auto node : order) {
    read(node);
    ASSERT_TRUE(within_budget());
  }
  EXPECT_LE(prefetch->stats().unforeseen, 5u);
  EXPECT_LE(reads, 20);
}

TEST_F(PrefetchTest, AReaderWhoJumpsStaysWithinTheBudget) {
  grow(sync::Mirror::kRoot, 4, 30, 3);
  std::mt19937_64 rng(5);
  for (int i = 0; i < 300; ++i) {
    read(order[rng() % order.size()]);
    ASSERT_TRUE(within_budget());
  }
}

TEST_F(PrefetchTest, AFileThatChangedIsReadAsItIsNow) {
  grow(sync::Mirror::kRoot, 0, 40, 0);
  {
    const std::lock_guard lock(mu);
    for (auto& [ino, attr] : served) attr.version = attr.ino % 3 == 0 ? 2 : 1;
  }
  for (const auto node : order) read(node);
}

TEST_F(PrefetchTest, AReaderDoesNotWaitForAHeldBatch) {
  grow(sync::Mirror::kRoot, 0, 40, 0);
  {
    const std::lock_guard lock(mu);
    hold = true;
  }
  read(order[0]);
  ASSERT_TRUE(eventually([&] { return prefetch->stats().batches == 1; }));
  const auto got = begin(order[1]);
  std::vector<std::function<void()>> patience;
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(mu);
    return !later.empty();
  }));
  EXPECT_FALSE(got->done);
  {
    const std::lock_guard lock(mu);
    patience.swap(later);
  }
  for (const auto& fn : patience) fn();
  ASSERT_TRUE(eventually([&] { return got->done.load(); }));
  EXPECT_EQ(got->error, 0);
  EXPECT_EQ(got->bytes.size(), attr_of(order[1]).size);
}

TEST_F(PrefetchTest, ALostBatchIsAskedForByItsReader) {
  grow(sync::Mirror::kRoot, 0, 40, 0);
  {
    const std::lock_guard lock(mu);
    hold = true;
  }
  read(order[0]);
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(mu);
    return !held.empty();
  }));
  const auto got = begin(order[1]);
  link.lose();
  link.connect(1, true);
  ASSERT_TRUE(eventually([&] { return got->done.load(); }));
  EXPECT_EQ(got->error, 0);
  EXPECT_EQ(got->bytes.size(), attr_of(order[1]).size);
}

// A reader who waits for a batch while the file gets other content, which a second reader knows of already.
TEST_F(PrefetchTest, AReaderOfOlderContentIsNotForgotten) {
  for (const bool by_patience : {true, false}) {
    const auto dir = add(sync::Mirror::kRoot, by_patience ? "a" : "b", 4096, true);
    order.clear();
    grow(dir, 0, 40, 0);
    {
      const std::lock_guard lock(mu);
      hold = true;
      later.clear();
      held.clear();
    }
    read(order[0]);
    ASSERT_TRUE(eventually([&] {
      const std::lock_guard lock(mu);
      return !held.empty();
    }));
    const auto first = begin(order[1]);
    auto attr = attr_of(order[1]);
    ++attr.version;
    attr.size /= 2;
    {
      const std::lock_guard lock(mu);
      served[attr.ino] = attr;
    }
    tree.write([&](sync::Mirror& m, sync::Changes& changes) { m.set_attr(order[1], attr, changes); });
    read(order[1]);
    if (by_patience) {
      std::vector<std::function<void()>> patience;
      {
        const std::lock_guard lock(mu);
        patience.swap(later);
      }
      for (const auto& fn : patience) fn();
    } else {
      link.lose();
      link.connect(1, true);
    }
    ASSERT_TRUE(eventually([&] { return first->done.load(); })) << by_patience;
    EXPECT_EQ(first->error, 0);
    EXPECT_EQ(first->bytes, body(attr));  // what there is now, as on a local disk
  }
}

TEST_F(PrefetchTest, RecordsThatMakeNoSenseHarmNobody) {
  grow(sync::Mirror::kRoot, 0, 40, 0);
  std::mt19937_64 rng(9);
  link.serve(wire::Method::kReadMany, [&](api::CallToken token, const wire::Bytes&) {
    wire::Bytes garbage(1 + rng() % 3000);
    for (auto& byte : garbage) byte = static_cast<std::byte>(rng());
    if (rng() % 2 == 0) garbage[3] = std::byte{0};
    if (link.chunk(token, garbage)) link.end(token, 0);
  });
  for (const auto node : order) read(node);
}

}  // namespace
}  // namespace nearbox::fs
