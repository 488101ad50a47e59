// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/versions.h"

#include <map>
#include <random>

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace nearbox::agent
