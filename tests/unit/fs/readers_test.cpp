// SPDX-License-Identifier: Apache-2.0
#include "fs/core/readers.h"

#include <cerrno>
#include <unistd.h>

#include <gtest/gtest.h>

namespace nearbox::fs {
namespace {

using namespace std::chrono_literals;
using Clock = Readers::Clock;

TEST(Readers, NamesAProgramByItsExecutable) {
  EXPECT_EQ(Readers::program(::getpid()), "fs_readers_test");
  EXPECT_EQ(Readers::program(0), "unknown");
  EXPECT_EQ(Readers::program(999'999'999), "unknown");
}

TEST(Readers, CountsWithoutAPolicyAndRefusesNobody) {
  Readers readers;
  EXPECT_FALSE(readers.limits());
  EXPECT_EQ(readers.admit("grep"), 0);
  readers.fetched("grep", 100);
  readers.fetched("node", 5000);
  readers.fetched("grep", 11);
  const auto programs = readers.programs();
  ASSERT_EQ(programs.size(), 2U);
  EXPECT_EQ(programs[0].name, "node");
  EXPECT_EQ(programs[1].fetched_bytes, 111U);
}

TEST(Readers, RefusesWhoIsDenied) {
  Readers readers({{"tracker-*", "updatedb"}, std::nullopt});
  EXPECT_TRUE(readers.limits());
  EXPECT_EQ(readers.admit("tracker-miner-fs-3"), EACCES);
  EXPECT_EQ(readers.admit("updatedb"), EACCES);
  EXPECT_EQ(readers.admit("updatedb2"), 0);
  for (const auto& one : readers.programs()) {
    EXPECT_EQ(one.refused, one.name == "updatedb2" ? 0U : 1U) << one.name;
  }
}

TEST(Readers, RefusesAProgramWhoseHourIsUsedUpUntilItIsRefilled) {
  Readers readers({{}, 3600});
  const auto begin = Clock::now();
  EXPECT_EQ(readers.admit("backup", begin), 0);
  readers.fetched("backup", 3600, begin);
  EXPECT_EQ(readers.admit("backup", begin), EDQUOT);
  EXPECT_EQ(readers.admit("grep", begin), 0);  // each has its own
  EXPECT_EQ(readers.admit("backup", begin + 1s), 0);
  readers.fetched("backup", 3600, begin + 1s);  // a read that began with an allowance ends
  EXPECT_EQ(readers.admit("backup", begin + 30min), EDQUOT);
  EXPECT_EQ(readers.admit("backup", begin + 61min), 0);
  // What was saved up is an hour at most.
  readers.fetched("backup", 3601, begin + 100h);
  EXPECT_EQ(readers.admit("backup", begin + 100h), EDQUOT);
}

TEST(Readers, CountsTheNamesOfAPossiblyEndlessListTogether) {
  Readers readers({{}, 1000});
  for (int i = 0; i < 1000; ++i) readers.fetched("program" + std::to_string(i), 1);
  const auto programs = readers.programs();
  EXPECT_EQ(programs.size(), Readers::kMaxPrograms);
  EXPECT_EQ(programs.front().name, "others");
  EXPECT_EQ(programs.front().fetched_bytes, 1000 - (Readers::kMaxPrograms - 1));
}

}  // namespace
}  // namespace nearbox::fs
