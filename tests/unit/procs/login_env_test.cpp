// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/login_env.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tools/agent/proc_groups.h"

namespace nearbox::agent {
namespace {

constexpr std::string_view kPasswd =
    "root:x:0:0:root:/root:/bin/bash\n"
    "# a comment\n"
    "broken:x:12\n"
    "big:x:99999999999:1:::\n"
    "late:x:1002:1002::/home/late:/bin/sh\n"
    "first:x:1001:100:,,,:/home/first:/usr/bin/zsh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin";

TEST(LoginEnv, FindsAccounts) {
  const auto first = account_by_name(kPasswd, "first");
  ASSERT_TRUE(first);
  EXPECT_EQ(first->uid, 1001U);
  EXPECT_EQ(first->gid, 100U);
  EXPECT_EQ(first->home, "/home/first");
  EXPECT_EQ(first->shell, "/usr/bin/zsh");
  EXPECT_EQ(account_by_uid(kPasswd, 65534)->name, "nobody");
  EXPECT_FALSE(account_by_name(kPasswd, "broken"));
  EXPECT_FALSE(account_by_name(kPasswd, "big"));
  EXPECT_FALSE(account_by_name("", "root"));
}

TEST(LoginEnv, ChoosesWhomTheSandboxIsFor) {
  EXPECT_EQ(account_of_sandbox(kPasswd)->name, "first");
  EXPECT_EQ(account_of_sandbox(std::string(kPasswd) + "\nuser:x:5000:5000::/home/user:")->name, "user");
  EXPECT_FALSE(account_of_sandbox("root:x:0:0::/root:/bin/sh\n"));
}

TEST(LoginEnv, FindsSupplementaryGroups) {
  const auto first = *account_by_name(kPasswd, "first");
  const auto groups = groups_of(
      "root:x:0:\nusers:x:100:first\nsudo:x:27:late,first\ndocker:x:999:first,first\nx:x:5:firstborn\nbad\n",
      first);
  EXPECT_EQ(groups, (std::vector<gid_t>{27, 999}));
}

TEST(LoginEnv, ReadsEnvironmentLines) {
  const auto env = environment_lines("# c\nPATH=\"/a:/b\"\n export X='1 2'\nY=a=b\n=bad\nnothing\nX=3\r\n");
  EXPECT_EQ(env, (std::vector<std::string>{"PATH=/a:/b", "X=3", "Y=a=b"}));
  EXPECT_EQ(variable(env, "PATH"), "/a:/b");
  EXPECT_EQ(variable(env, "PAT"), "");
}

TEST(LoginEnv, UnknownUserIsToldByName) {
  const auto account = find_account("no-such-user-here");
  ASSERT_FALSE(account);
  EXPECT_EQ(account.error().as_errno(), ENOENT);
  EXPECT_NE(account.error().message().find("no-such-user-here"), std::string::npos);
}

TEST(ProcGroups, ReadsStatLines) {
  EXPECT_EQ(live_group_of("12 (sh) S 1 12 12 0 -1 4194304"), 12);
  EXPECT_EQ(live_group_of("12 (a) Z) b) R 7 34 12 0"), 34);
  EXPECT_EQ(live_group_of("12 (sh) Z 1 12 12 0"), 0);
  EXPECT_EQ(live_group_of("garbage"), 0);
  EXPECT_EQ(live_group_of("1 (x)"), 0);
  EXPECT_EQ(live_group_of(""), 0);
}

}  // namespace
}  // namespace nearbox::agent
