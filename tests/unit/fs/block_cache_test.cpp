// SPDX-License-Identifier: Apache-2.0
#include "fs/core/block_cache.h"

#include <atomic>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include <gtest/gtest.h>

#include "tests/unit/sync/fake_link.h"

namespace nearbox::fs {
namespace {

using namespace std::chrono_literals;
using sync::test::eventually;
using sync::test::FakeLink;

constexpr std::uint64_t kMiB = 1024 * 1024;

std::byte at(std::uint64_t ino, std::uint64_t version, std::uint64_t offset) {
  return static_cast<std::byte>((offset * 31 + offset / 4099 + ino * 7 + version * 3) & 0xff);
}

struct File {
  wire::Attr attr;
  int error = 0;      // of every read
  bool held = false;  // reads are not answered
};

// Serves files whose bytes follow from inode, version and offset.
class BlockCacheTest : public ::testing::Test {
 protected:
  BlockCacheTest() {
    link.serve(wire::Method::kRead,
               [this](api::CallToken token, const wire::Bytes& bytes) { serve(token, bytes); });
    link.connect(1, false);
  }
  ~BlockCacheTest() override {
    if (cache) cache->close();
  }

  void start() {
    BlockCacheHooks hooks;
    hooks.locate = [this](sync::NodeIndex node, const wire::NodeId& id) -> std::optional<wire::PathCall> {
      if (yields) std::this_thread::yield();  // other readers come in between
      const std::lock_guard lock(mu);
      if (gone.contains(node)) return std::nullopt;
      wire::PathCall call;
      call.path = std::to_string(id.ino);
      call.expect = id;
      return call;
    };
    hooks.refresh = [this](sync::NodeIndex node, std::function<void()> done) {
      {
        const std::lock_guard lock(mu);
        ++refreshed;
        if (files[node].error == ESTALE && heal) files[node].error = 0;
        if (files[node].error == ECONNRESET) files[node].error = 0;
        if (changes_on_refresh) ++files[node].attr.version;
        if (files[node].error == ESTALE && !heal) gone.insert(node);
      }
      done();
    };
    hooks.changed = [this](sync::NodeIndex, const wire::Attr& attr) {
      const std::lock_guard lock(mu);
      shown_change = attr;
    };
    hooks.attr = [this](sync::NodeIndex node) {
      const std::lock_guard lock(mu);
      return files[node].attr;
    };
    cache = std::make_unique<BlockCache>(link, std::move(hooks), options);
  }

  wire::Attr add(std::uint64_t ino, std::uint64_t size) {
    const std::lock_guard lock(mu);
    auto& file = files[static_cast<sync::NodeIndex>(ino)];
    file.attr.ino = ino;
    file.attr.dev = 1;
    file.attr.size = size;
    file.attr.mode = 0100644;
    file.attr.version = 1;
    return file.attr;
  }

  void serve(api::CallToken token, const wire::Bytes& bytes) {
    const auto call = wire::decode<wire::Read>(bytes);
    ASSERT_TRUE(call);
    const auto node = static_cast<sync::NodeIndex>(call->at.expect.ino);
    File file;
    {
      const std::lock_guard lock(mu);
      file = files[node];
      ++calls[node];
      asked[node] += call->length;
      if (file.held) {
        held_calls.emplace_back(token, bytes);
        return;
      }
    }
    if (file.error != 0) return link.end(token, file.error);
    const auto size = file.attr.size;
    const auto end = std::min(call->offset + call->length, size);
    wire::Bytes data;
    for (auto offset = call->offset; offset < end; ++offset)
      data.push_back(at(node, file.attr.version, offset));
    if (!link.chunk(token, data)) return;
    wire::ReadReply reply;
    reply.attr = file.attr;
    reply.eof = end == size;
    link.end(token, 0, wire::encode(reply));
  }

  struct Got {
    std::atomic<bool> done{false};
    int error = 0;
    wire::Bytes bytes;
  };
  std::shared_ptr<Got> read(const wire::Attr& attr, std::uint64_t offset, std::size_t length) {
    auto got = std::make_shared<Got>();
    cache->read(static_cast<sync::NodeIndex>(attr.ino), attr, offset, length, [got](BlockCache::Data&& data) {
      got->error = data.error;
      for (const auto& piece : data.pieces) {
        const auto* from = piece.block->data() + piece.offset;
        got->bytes.insert(got->bytes.end(), from, from + piece.length);
      }
      got->done = true;
    });
    return got;
  }
  void expect_bytes(const wire::Attr& attr, std::uint64_t offset, std::size_t length) {
    const auto got = read(attr, offset, length);
    ASSERT_TRUE(eventually([&] { return got->done.load(); }));
    ASSERT_EQ(got->error, 0);
    const auto end = std::min<std::uint64_t>(offset + length, attr.size);
    ASSERT_EQ(got->bytes.size(), end > offset ? end - offset : 0);
    for (std::size_t i = 0; i < got->bytes.size(); ++i) {
      ASSERT_EQ(got->bytes[i], at(attr.ino, attr.version, offset + i)) << "offset " << offset + i;
    }
  }
  int calls_of(std::uint64_t ino) {
    const std::lock_guard lock(mu);
    return calls[static_cast<sync::NodeIndex>(ino)];
  }

  std::mutex mu;
  std::map<sync::NodeIndex, File> files;
  std::map<sync::NodeIndex, int> calls;
  std::map<sync::NodeIndex, std::uint64_t> asked;
  std::set<sync::NodeIndex> gone;
  std::vector<std::pair<api::CallToken, wire::Bytes>> held_calls;
  int refreshed = 0;
  bool heal = true;
  bool yields = false;
  bool changes_on_refresh = false;
  wire::Attr shown_change;
  BlockCacheOptions options;
  std::unique_ptr<BlockCache> cache;
  FakeLink link{7};  // last: its thread uses the others
};

TEST_F(BlockCacheTest, SmallFilesComeWholeAndOnce) {
  start();
  const auto attr = add(5, 300'000);
  expect_bytes(attr, 100'000, 10);
  expect_bytes(attr, 0, 1'000'000);
  expect_bytes(attr, 299'990, 100);
  expect_bytes(attr, 300'000, 100);
  EXPECT_EQ(calls_of(5), 1);
  EXPECT_EQ(cache->stats().bytes, 300'000u);
}

TEST_F(BlockCacheTest, RandomReadsOfALargeFileAreRight) {
  start();
  const auto attr = add(5, 9 * kMiB + 12345);
  link.lose_at_random(5);  // reads go on where they were
  std::mt19937_64 rng(3);
  for (int i = 0; i < 60; ++i) expect_bytes(attr, rng() % attr.size, 1 + rng() % 300'000);
}

TEST_F(BlockCacheTest, ReadsFarApartFetchWhatTheyNeed) {
  start();
  const auto attr = add(5, 400 * kMiB);
  expect_bytes(attr, 300 * kMiB + 5, 4096);
  expect_bytes(attr, 100 * kMiB + 5, 4096);
  EXPECT_EQ(cache->stats().fetched, 2u * options.block_bytes);
}

TEST_F(BlockCacheTest, ReadAheadGrowsForASequentialReader) {
  start();
  const auto attr = add(5, 40 * kMiB);
  for (std::uint64_t at_offset = 0; at_offset < 8 * kMiB; at_offset += 128 * 1024) {
    expect_bytes(attr, at_offset, 128 * 1024);
  }
  ASSERT_TRUE(eventually([&] { return cache->stats().fetches == 0; }));
  EXPECT_GE(cache->stats().bytes, 14 * kMiB);
  EXPECT_LE(cache->stats().bytes, 8 * kMiB + options.max_ahead_bytes + kMiB);
  EXPECT_LE(calls_of(5), 40);
}

TEST_F(BlockCacheTest, ConcurrentReadersShareOneFetch) {
  start();
  const auto attr = add(5, 500'000);
  {
    const std::lock_guard lock(mu);
    files[5].held = true;
  }
  std::vector<std::shared_ptr<Got>> all;
  for (int i = 0; i < 100; ++i) all.push_back(read(attr, static_cast<std::uint64_t>(i) * 1000, 1000));
  ASSERT_TRUE(eventually([&] { return calls_of(5) == 1; }));
  {
    const std::lock_guard lock(mu);
    files[5].held = false;
  }
  link.do_now([&] {
    for (auto& [token, bytes] : std::exchange(held_calls, {})) serve(token, bytes);
  });
  for (const auto& got : all) {
    ASSERT_TRUE(eventually([&] { return got->done.load(); }));
    EXPECT_EQ(got->bytes.size(), 1000u);
  }
  EXPECT_EQ(link.calls_made(wire::Method::kRead), 1u);
}

// Each reader says anew where the file is, while the fetches of others begin (for the thread sanitizer).
TEST_F(BlockCacheTest, ManyThreadsReadOneFile) {
  constexpr std::uint64_t kThreads = 4;
  constexpr std::uint64_t kReads = 50;
  options.max_fetches = options.max_file_fetches = kThreads * kReads;  // readers start fetches themselves
  yields = true;
  start();
  const auto attr = add(5, kThreads * kReads * kMiB);
  std::vector<std::vector<std::shared_ptr<Got>>> got(kThreads);
  {
    std::vector<std::jthread> readers;
    for (std::uint64_t thread = 0; thread < kThreads; ++thread) {
      readers.emplace_back([&, thread] {
        for (std::uint64_t i = 0; i < kReads; ++i)
          got[thread].push_back(read(attr, (i * kThreads + thread) * kMiB, 1000));
      });
    }
  }
  for (const auto& reads : got) {
    for (const auto& one : reads) {
      ASSERT_TRUE(eventually([&] { return one->done.load(); }));
      EXPECT_EQ(one->bytes.size(), 1000u);
    }
  }
}

TEST_F(BlockCacheTest, HeldFilesDoNotStopOthers) {
  options.max_fetches = 1000;
  start();
  for (std::uint64_t ino = 100; ino < 600; ++ino) {
    const auto attr = add(ino, 8 * kMiB);
    {
      const std::lock_guard lock(mu);
      files[static_cast<sync::NodeIndex>(ino)].held = true;
    }
    read(attr, 0, 128 * 1024);
  }
  expect_bytes(add(5, 1000), 0, 1000);
  expect_bytes(add(6, 8 * kMiB), kMiB, 128 * 1024);
  expect_bytes(add(7, 8 * kMiB), 0, 128 * 1024);
}

TEST_F(BlockCacheTest, AnotherVersionIsFetchedAgain) {
  start();
  auto attr = add(5, 1000);
  expect_bytes(attr, 0, 1000);
  {
    const std::lock_guard lock(mu);
    files[5].attr.version = 2;
    attr = files[5].attr;
  }
  expect_bytes(attr, 0, 1000);
  EXPECT_EQ(calls_of(5), 2);
}

TEST_F(BlockCacheTest, WithoutAVersionTheChangeTimeCounts) {
  start();
  add(5, 1000);
  const auto touch = [&](std::int64_t ctime) {
    const std::lock_guard lock(mu);
    files[5].attr.version = 0;
    files[5].attr.mtime_ns = 7;  // set back by a program that copies times
    files[5].attr.ctime_ns = ctime;
    return files[5].attr;
  };
  const auto before = touch(1);
  expect_bytes(before, 0, 1000);
  expect_bytes(before, 0, 1000);
  EXPECT_EQ(calls_of(5), 1);
  const auto after = touch(2);
  expect_bytes(after, 0, 1000);
  EXPECT_EQ(calls_of(5), 2);
  ASSERT_TRUE(eventually([&] { return cache->stats().fetches == 0; }));
  cache->wrote(after, touch(3), 0, 10);  // nothing shows that nobody else wrote
  EXPECT_EQ(cache->stats().bytes, 0u);
}

TEST_F(BlockCacheTest, AChangeSeenWhileReadingIsToldAndNotKept) {
  start();
  auto attr = add(5, 1000);
  {
    const std::lock_guard lock(mu);
    files[5].attr.version = 2;
    files[5].attr.size = 600;  // it shrank
  }
  const auto got = read(attr, 0, 1000);
  ASSERT_TRUE(eventually([&] { return got->done.load(); }));
  EXPECT_EQ(got->error, 0);
  EXPECT_EQ(got->bytes.size(), 600u);
  ASSERT_TRUE(eventually([&] { return cache->stats().bytes == 0; }));
  const std::lock_guard lock(mu);
  EXPECT_EQ(shown_change.size, 600u);
}

TEST_F(BlockCacheTest, AStaleNameIsLookedForOnce) {
  start();
  const auto attr = add(5, 1000);
  {
    const std::lock_guard lock(mu);
    files[5].error = ESTALE;
  }
  expect_bytes(attr, 0, 1000);
  EXPECT_EQ(refreshed, 1);
  const auto other = add(6, 1000);
  {
    const std::lock_guard lock(mu);
    files[6].error = ESTALE;
    heal = false;
  }
  const auto got = read(other, 0, 10);
  ASSERT_TRUE(eventually([&] { return got->done.load(); }));
  EXPECT_EQ(got->error, ESTALE);
}

TEST_F(BlockCacheTest, ReadsGoOnWithARestartedAgentUnlessTheFileChanged) {
  start();
  const auto attr = add(5, 1000);
  const auto other = add(6, 1000);
  {
    const std::lock_guard lock(mu);
    files[5].error = files[6].error = ECONNRESET;
  }
  expect_bytes(attr, 0, 1000);
  EXPECT_EQ(refreshed, 1);
  {
    const std::lock_guard lock(mu);
    changes_on_refresh = true;
  }
  const auto got = read(other, 0, 10);
  ASSERT_TRUE(eventually([&] { return got->done.load(); }));
  EXPECT_EQ(got->error, ECONNRESET);
}

TEST_F(BlockCacheTest, ErrorsAreToldAndTriedAgainLater) {
  start();
  const auto attr = add(5, 1000);
  {
    const std::lock_guard lock(mu);
    files[5].error = EACCES;
  }
  const auto got = read(attr, 0, 10);
  ASSERT_TRUE(eventually([&] { return got->done.load(); }));
  EXPECT_EQ(got->error, EACCES);
  {
    const std::lock_guard lock(mu);
    files[5].error = 0;
  }
  expect_bytes(attr, 0, 1000);
}

TEST_F(BlockCacheTest, MemoryStaysBelowItsLimit) {
  options.max_bytes = 4 * kMiB;
  start();
  for (std::uint64_t ino = 10; ino < 40; ++ino) expect_bytes(add(ino, 700'000), 0, 700'000);
  EXPECT_LE(cache->stats().bytes, 4 * kMiB);
  EXPECT_GE(cache->stats().bytes, 3 * kMiB);
}

TEST_F(BlockCacheTest, AnOwnWriteKeepsTheRest) {
  start();
  auto before = add(5, 500'000);
  expect_bytes(before, 0, 500'000);
  ASSERT_TRUE(eventually([&] { return cache->stats().fetches == 0; }));
  auto after = before;
  after.version = 2;
  after.mtime_ns = 5;
  cache->wrote(before, after, 10, 100);
  EXPECT_EQ(cache->stats().bytes, 500'000u - options.block_bytes);
  auto later = after;
  later.version = 9;  // others were changed in between, which one counter counts too
  cache->wrote(after, later, 10, 100);
  EXPECT_EQ(cache->stats().bytes, 500'000u - options.block_bytes);
  cache->wrote(later, before, 10, 100);  // not a later version: another agent, or an answer that came late
  EXPECT_EQ(cache->stats().bytes, 0u);
}

TEST_F(BlockCacheTest, ReadersThatComeLaterOutliveAFetchThatTimedOut) {
  options.deadline = 400ms;
  start();
  const auto attr = add(5, 1000);
  {
    const std::lock_guard lock(mu);
    files[5].held = true;
  }
  const auto first = read(attr, 0, 10);
  ASSERT_TRUE(eventually([&] { return calls_of(5) == 1; }));
  const auto half = std::chrono::steady_clock::now() + 200ms;
  ASSERT_TRUE(eventually([&] { return std::chrono::steady_clock::now() > half; }));
  const auto second = read(attr, 0, 10);
  ASSERT_TRUE(eventually([&] { return first->done.load(); }));
  EXPECT_EQ(first->error, ETIMEDOUT);
  ASSERT_TRUE(eventually([&] { return calls_of(5) == 2; }));
  EXPECT_FALSE(second->done);
  {
    const std::lock_guard lock(mu);
    files[5].held = false;
  }
  link.do_now([&] {
    for (auto& [token, bytes] : std::exchange(held_calls, {})) {
      if (link.on_wire(token)) serve(token, bytes);
    }
  });
  ASSERT_TRUE(eventually([&] { return second->done.load(); }));
  EXPECT_EQ(second->error, 0);
}

TEST_F(BlockCacheTest, CloseAnswersThoseWhoWait) {
  start();
  const auto attr = add(5, 1000);
  {
    const std::lock_guard lock(mu);
    files[5].held = true;
  }
  const auto got = read(attr, 0, 10);
  cache->close();
  EXPECT_TRUE(got->done);
  EXPECT_EQ(got->error, ESHUTDOWN);
}

}  // namespace
}  // namespace nearbox::fs
