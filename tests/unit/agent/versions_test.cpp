// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/versions.h"

#include <fcntl.h>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "tests/unit/agent/agent_test_util.h"
#include "tools/agent/fs_path.h"
#include "tools/agent/watch/storms.h"

namespace nearbox::agent {
namespace {

TEST(VersionsTest, NothingIsSaidWhileNothingIsWatched) {
  Versions versions;
  EXPECT_EQ(versions.of({1, 1}), 0U);
  EXPECT_EQ(versions.bump({1, 1}), 0U);
  versions.enable();
  EXPECT_GT(versions.of({1, 1}), 0U);
}

TEST(VersionsTest, AVersionIsNeverUsedTwiceAndOnlyGrows) {
  Versions versions;
  versions.enable();
  const auto first = versions.of({1, 1});
  const auto second = versions.bump({1, 1});
  EXPECT_GT(second, first);
  EXPECT_EQ(versions.of({1, 1}), second);
  EXPECT_EQ(versions.of({1, 2}), first);
  EXPECT_GT(versions.bump({1, 2}), second);
  versions.bump_all();
  EXPECT_GT(versions.of({1, 1}), second + 1);
  versions.disable();
  versions.enable();
  EXPECT_GT(versions.of({1, 3}), versions.now() - 1);
}

TEST(VersionsTest, WhatWasReadBeforeAChangeIsNotTakenForIt) {
  Versions versions;
  versions.enable();
  const auto before = versions.now();
  const auto after = versions.bump({1, 1});
  EXPECT_LT(versions.of({1, 1}, before), after);
}

// Nothing is said of what others change without a word.
TEST(VersionsTest, BlindDevices) {
  Versions versions;
  versions.enable();
  versions.set_blind({7, 9});
  EXPECT_EQ(versions.of({7, 1}), 0U);
  EXPECT_EQ(versions.bump({9, 1}), 0U);
  EXPECT_NE(versions.of({8, 1}), 0U);
  EXPECT_NE(versions.bump({8, 1}), 0U);
  versions.set_blind({});
  EXPECT_NE(versions.of({7, 1}), 0U);
  std::set<std::uint64_t> many;
  for (std::uint64_t dev = 1; dev <= 2 * kMaxBlind; ++dev) many.insert(dev);
  versions.set_blind(many);
  EXPECT_EQ(versions.of({kMaxBlind, 1}), 0U);
  EXPECT_NE(versions.of({kMaxBlind + 1, 1}), 0U);
}

// However many nodes change: none that did has a version that was said before.
TEST(VersionsTest, ForgottenNodesDoNotLookUnchanged) {
  Versions versions;
  versions.enable();
  std::mt19937_64 rng(7);
  std::map<std::uint64_t, std::uint64_t> said;
  for (int i = 0; i < 2'000'000; ++i) {
    const auto ino = rng() % 1'000'000;
    const auto it = said.find(ino);
    const auto version = versions.bump({5, ino});
    if (it != said.end()) {
      ASSERT_GT(version, it->second);
    }
    said[ino] = version;
  }
  for (const auto& [ino, version] : said) ASSERT_GE(versions.of({5, ino}), version);
}

// Where nobody counts, a file is another one at each look until its times can tell the next change, and has
// no version from then on.
TEST(RacyTest, YoungFilesAreOthersAtEachLook) {
  for (const std::string tick : {"", "4ms", "1s"}) {
    test::Faults faults;
    faults.set(tick.empty() ? "" : "agent.coarse_times " + tick + "\n");
    ASSERT_TRUE(faults.reaches("agent.coarse_times", tick, !tick.empty()));
    const test::TempDir dir;
    const auto path = dir / "f";
    const auto look = [&] { return make_attr(*stat_at(AT_FDCWD, path.c_str())); };
    test::write_file(path, "one");
    const auto first = look();
    const auto second = look();
    EXPECT_GT(first.version, 0U);
    EXPECT_GT(second.version, first.version);
    EXPECT_TRUE(test::eventually([&] { return look().version == 0; }));
    EXPECT_EQ(look(), look());
    EXPECT_EQ(make_attr(*stat_at(AT_FDCWD, dir.path.c_str())).version, 0U);  // directories are listed
    if (tick.empty()) continue;
    EXPECT_GE(stat_at(AT_FDCWD, path.c_str())->looked_ns - first.ctime_ns,
              tick == "1s" ? 2'000'000'000 : 8'000'000);
    faults.set("agent.no_racy_rule\nagent.coarse_times " + tick + "\n");
    ASSERT_TRUE(faults.reaches("agent.no_racy_rule", "", true));
    test::write_file(path, "two");
    EXPECT_EQ(look().version, 0U);
  }
}

TEST(RacyTest, BelowARootThatIsNotWatchedNobodyCounts) {
  const test::TempDir dir;
  const auto path = dir / "f";
  test::write_file(path, "one");
  auto& versions = Versions::process();
  versions.enable();
  const auto look = [&] { return make_attr(*stat_at(AT_FDCWD, path.c_str())); };
  const auto counted = look().version;
  EXPECT_GT(counted, 0U);
  {
    const Uncounted here(true);
    EXPECT_TRUE(test::eventually([&] { return look().version == 0; }));
    const Uncounted below(false);
    EXPECT_EQ(look().version, counted);
  }
  EXPECT_EQ(look().version, counted);
  versions.disable();
}

TEST(StormsTest, ToldAtOnceThenLessAndLessOftenAndInTheEnd) {
  using std::chrono::milliseconds;
  Storms storms;
  Storms::TimePoint now{std::chrono::hours(1)};
  const wire::NodeId dir{1, 2};
  EXPECT_FALSE(storms.next_due());
  ASSERT_TRUE(storms.begin(dir, {}, now));
  EXPECT_EQ(storms.take(now, false).size(), 1U);
  EXPECT_TRUE(storms.take(now, false).empty());  // nothing since
  std::vector<milliseconds> gaps;
  auto last = now;
  for (int i = 0; i < 20'000; ++i) {
    now += milliseconds(1);
    storms.note(dir, now);
    if (storms.take(now, false).empty()) continue;
    gaps.push_back(std::chrono::duration_cast<milliseconds>(now - last));
    last = now;
  }
  ASSERT_GE(gaps.size(), 6U);
  EXPECT_EQ(gaps[0], kFirstStormInterval);
  EXPECT_EQ(gaps[1], 2 * kFirstStormInterval);
  EXPECT_EQ(gaps.back(), kLongestStormInterval);
  storms.note(dir, now);
  EXPECT_EQ(storms.take(now, true).size(), 1U);  // a barrier
  EXPECT_TRUE(storms.take(now + kStormOver, false).empty());
  EXPECT_FALSE(storms.any());
  for (std::size_t i = 0; i < kMaxStorms; ++i) EXPECT_TRUE(storms.begin({1, i + 10}, {}, now));
  EXPECT_FALSE(storms.begin({1, 1}, {}, now));
}

}  // namespace
}  // namespace nearbox::agent
