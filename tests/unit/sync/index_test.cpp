// SPDX-License-Identifier: Apache-2.0
#include "sync/index/index.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <map>
#include <poll.h>
#include <random>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "sync/index/sqlite.h"
#include "tests/unit/sync/temp_tree.h"

namespace nearbox::index {
namespace {

using test::TempTree;

const Pairing kPairing{"/home/a/project", "sandbox:/work"};

Entry entry(std::uint64_t n) {
  Entry e;
  e.stat = {Type::kFile, 0100644 & 07777, n, static_cast<std::int64_t>(n) - 5, 7, ~n, n};
  e.digest.fill(static_cast<unsigned char>(n));
  e.remote_version = n;
  e.racy = n % 2 == 1;
  return e;
}

std::unique_ptr<Index> open(const TempTree& t, const Pairing& pairing = kPairing) {
  auto index = Index::open(t.at("index").string(), pairing);
  EXPECT_TRUE(index) << index.error().message();
  return index ? *std::move(index) : nullptr;
}

std::map<std::string, Entry> all(const Index& index) {
  std::map<std::string, Entry> out;
  EXPECT_TRUE(index.each([&](std::string_view path, const Entry& e) { out.emplace(path, e); }));
  return out;
}

TEST(Index, KeepsEverythingExactly) {
  TempTree t;
  const std::map<std::string, Entry> wanted = {{"a", entry(1)},
                                               {std::string("\xff\xfe/\n"), entry(2)},
                                               {"a/b", entry(~0ULL)},
                                               {std::string(kMaxPathBytes, 'p'), entry(4)}};
  {
    const auto index = open(t);
    Batch batch;
    for (const auto& [path, e] : wanted) batch.put(path, e);
    ASSERT_TRUE(index->apply(batch));
    ASSERT_TRUE(index->set("sequence", std::string("12\0\xff", 4)));
  }
  const auto index = open(t);
  EXPECT_EQ(all(*index), wanted);
  EXPECT_EQ(*index->get("sequence"), std::string("12\0\xff", 4));
  EXPECT_EQ(*index->get("other"), "");
  EXPECT_EQ(*index->size(), 4U);
  Batch batch;
  batch.remove("a");
  batch.put("a/b", entry(9));
  ASSERT_TRUE(index->apply(batch));
  EXPECT_EQ(all(*index).count("a"), 0U);
  EXPECT_EQ(all(*index).at("a/b"), entry(9));
  ASSERT_TRUE(index->clear());
  EXPECT_EQ(*index->size(), 0U);
  EXPECT_TRUE(index->check());
}

TEST(Index, APathAndAllBelowIt) {
  TempTree t;
  const auto index = open(t);
  Batch batch;
  for (const char* path : {"a", "a-b", "a.c", "a/b", "a/b/c", "a0", "b"}) batch.put(path, entry(1));
  ASSERT_TRUE(index->apply(batch));
  const auto at = [&](const char* path) {
    std::string out;
    EXPECT_TRUE(index->each_at(path, [&](std::string_view p, const Entry&) { out += std::string(p) + " "; }));
    return out;
  };
  EXPECT_EQ(at("a"), "a a/b a/b/c ");
  EXPECT_EQ(at("a/b/c"), "a/b/c ");
  EXPECT_EQ(at("c"), "");
  EXPECT_TRUE(index->find("a0")->has_value());
  EXPECT_FALSE(index->find("a1")->has_value());
}

TEST(Index, ObservedGoesWithThePathsEntry) {
  TempTree t;
  const auto index = open(t);
  const auto count = [&] {
    std::size_t n = 0;
    EXPECT_TRUE(index->each_observed([&](std::string_view, const Observed&) { ++n; }));
    return n;
  };
  Batch batch;
  batch.observe("a", {entry(1).stat, entry(1).digest});
  batch.observe("b", {entry(2).stat, entry(2).digest});
  batch.observe("c", {entry(3).stat, entry(3).digest});
  ASSERT_TRUE(index->apply(batch));
  EXPECT_EQ(count(), 3U);
  Batch next;
  next.put("a", entry(1));  // pushed: the baseline has it now
  next.remove("b");
  next.forget("c");
  ASSERT_TRUE(index->apply(next));
  EXPECT_EQ(count(), 0U);
}

TEST(Index, AFailedBatchChangesNothing) {
  TempTree t;
  const auto index = open(t);
  Batch bad;
  bad.put("good", entry(1));
  bad.put(std::string("nul\0", 4), entry(1));
  EXPECT_EQ(index->apply(bad).error().as_errno(), EINVAL);
  EXPECT_EQ(*index->size(), 0U);
  Batch good;
  good.put("good", entry(1));
  EXPECT_TRUE(index->apply(good));
}

TEST(Index, BelongsToOnePairing) {
  TempTree t;
  (void)open(t);
  EXPECT_EQ(Index::open(t.at("index").string(), {"/home/a/project", "other:/work"}).error().as_errno(),
            ESTALE);
  EXPECT_TRUE(Index::open(t.at("index").string(), kPairing));
}

TEST(Index, DamagedOrForeignFilesAreRefused) {
  TempTree t;
  t.write("index", std::string(10'000, 'x'));
  EXPECT_EQ(Index::open(t.at("index").string(), kPairing).error().as_errno(), EUCLEAN);
  t.remove("index");
  {
    auto foreign = Database::open(t.at("index").string());
    ASSERT_TRUE(foreign);
    ASSERT_TRUE(foreign->run("CREATE TABLE t(a)"));
  }
  EXPECT_EQ(Index::open(t.at("index").string(), kPairing).error().as_errno(), EUCLEAN);
  t.remove("index");
  t.link("index", "elsewhere");
  EXPECT_FALSE(Index::open(t.at("index").string(), kPairing));
  EXPECT_FALSE(std::filesystem::exists(t.at("elsewhere")));
}

// Writes generations until it is killed: each is one batch that gives every path the same number, and removes
// or brings back half of them. A byte goes to `out` for each that was applied.
[[noreturn]] void write_generations(const std::string& path, int out) {
  auto index = Index::open(path, kPairing);
  if (!index) ::_exit(1);
  std::uint64_t generation = 0;
  (void)(*index)->each(
      [&](std::string_view, const Entry& e) { generation = std::max(generation, e.remote_version); });
  for (;;) {
    ++generation;
    Batch batch;
    for (int i = 0; i < 200; ++i) {
      const auto name = "dir/" + std::to_string(i);
      if (i >= 100 && generation % 2 == 0) {
        batch.remove(name);
      } else {
        batch.put(name, entry(generation));
      }
    }
    if (!(*index)->apply(batch)) ::_exit(2);
    const unsigned char byte = 1;
    if (::write(out, &byte, 1) != 1) ::_exit(3);
  }
}

TEST(Index, SurvivesKillAtAnyTime) {
  TempTree t;
  std::mt19937_64 rng(7);
  std::uint64_t applied = 0;  // generations we were told of
  for (int round = 0; round < 60; ++round) {
    int pipe[2];
    ASSERT_EQ(::pipe2(pipe, 0), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(pipe[0]);
      write_generations(t.at("index").string(), pipe[1]);
    }
    ::close(pipe[1]);
    // Some generations, then the kill falls somewhere into the next: at a different place each time.
    std::uint64_t told = 0;
    for (auto wanted = rng() % 8; told < wanted;) {
      unsigned char byte = 0;
      const ssize_t n = ::read(pipe[0], &byte, 1);
      ASSERT_EQ(n, 1) << "the writer ended by itself";
      ++told;
    }
    pollfd wait{pipe[0], 0, 0};
    (void)::poll(&wait, 1, static_cast<int>(rng() % 3));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << status;
    unsigned char rest[4096];
    for (ssize_t n = ::read(pipe[0], rest, sizeof rest); n > 0; n = ::read(pipe[0], rest, sizeof rest)) {
      told += static_cast<std::uint64_t>(n);
    }
    ::close(pipe[0]);

    const auto index = open(t);
    ASSERT_TRUE(index);
    ASSERT_TRUE(index->check());
    const auto entries = all(*index);
    applied += told;
    if (entries.empty()) {
      ASSERT_EQ(applied, 0U);
      continue;
    }
    const auto generation = entries.begin()->second.remote_version;
    EXPECT_GE(generation, applied) << "an applied batch is lost";
    EXPECT_LE(generation, applied + 1);
    EXPECT_EQ(entries.size(), generation % 2 == 0 ? 100U : 200U);
    for (const auto& [path, e] : entries) ASSERT_EQ(e, entry(generation)) << path;
    applied = generation;
  }
  EXPECT_GT(applied, 60U);
}

}  // namespace
}  // namespace nearbox::index
