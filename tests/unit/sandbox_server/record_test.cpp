// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/record.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

namespace stdfs = std::filesystem;

class RecordTest : public ::testing::Test {
 protected:
  RecordTest() {
    std::string name = (stdfs::temp_directory_path() / "nearbox-record-XXXXXX").string();
    dir = ::mkdtemp(name.data());
    path = (dir / "iabc.json").string();
    record.id = "iabc";
    record.spec.template_id = "base";
    record.spec.metadata = {{"k", "v \xc3\xa4 \xff"}};
    record.spec.envs = {{"A", "1"}};
    record.spec.binds = {"/srv/x"};
    record.spec.auto_pause = true;
    record.spec.auto_pause_memory = false;
    record.spec.internet = true;
    record.spec.mask_host = "localhost:${PORT}";
    record.mode = IsolationMode::kUserns;
    record.token = base::Secret("ea_token");
    record.started = WallClock::time_point(std::chrono::milliseconds(1'700'000'000'123));
    record.ends = record.started + std::chrono::seconds(60);
  }
  ~RecordTest() override {
    std::error_code ignored;
    stdfs::remove_all(dir, ignored);
  }
  stdfs::path dir;
  std::string path;
  SandboxRecord record;
};

TEST_F(RecordTest, ComesBackWhole) {
  ASSERT_TRUE(write_record(path, record));
  struct stat st {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777U, 0600U) << "it holds tokens";
  EXPECT_FALSE(stdfs::exists(path + ".new"));
  const auto back = read_record(path);
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ(back->id, record.id);
  EXPECT_EQ(back->spec.envs, record.spec.envs);
  EXPECT_EQ(back->spec.binds, record.spec.binds);
  EXPECT_EQ(back->spec.metadata.size(), 1U);
  EXPECT_TRUE(back->spec.auto_pause);
  EXPECT_FALSE(back->spec.auto_pause_memory);
  EXPECT_EQ(back->spec.internet, std::optional(true));
  EXPECT_EQ(back->spec.mask_host, record.spec.mask_host);
  EXPECT_EQ(back->mode, record.mode);
  EXPECT_EQ(back->token.reveal(), "ea_token");
  EXPECT_TRUE(back->traffic_token.empty());
  EXPECT_EQ(back->started, record.started);
  EXPECT_EQ(back->ends, record.ends);
}

TEST_F(RecordTest, WhatIsNoRecordIsRefused) {
  ASSERT_TRUE(write_record(path, record));
  std::string text;
  std::getline(std::ifstream(path), text, '\0');
  const auto with = [&](const std::string& from, const std::string& to) {
    auto other = text;
    other.replace(other.find(from), from.size(), to);
    return other;
  };
  for (const auto& bad : {std::string(), std::string("{}"), text.substr(0, text.size() / 2),
                          with("nearbox sandbox", "something else"), with("\"version\":1", "\"version\":2"),
                          with("\"id\":\"iabc\"", "\"id\":\"../x\""), with("\"mode\":1", "\"mode\":7"),
                          with("\"timeout\":300", "\"timeout\":\"x\"")}) {
    std::ofstream(path, std::ios::trunc) << bad;
    EXPECT_FALSE(read_record(path)) << bad;
  }
  EXPECT_FALSE(read_record(path + ".none"));
  stdfs::remove(path);
  stdfs::create_symlink("/etc/passwd", path);
  EXPECT_FALSE(read_record(path)) << "no link is followed";
}

}  // namespace
}  // namespace nearbox::sandbox_server
