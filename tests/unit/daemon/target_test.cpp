// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/target.h"

#include <gtest/gtest.h>

#include "client/api/error_code.h"

namespace nearbox::daemon {
namespace {

struct Good {
  const char* text;
  bool local;
  Provider provider;
  const char* name;
  const char* dir;
  const char* sandbox;
};

TEST(Target, Forms) {
  const Good rows[] = {
      {"i4k2m9", false, Provider::kE2b, "i4k2m9", "", "i4k2m9"},
      {"i4k2m9:/a/b", false, Provider::kE2b, "i4k2m9", "/a/b", "i4k2m9"},
      {"i4k2m9:", false, Provider::kE2b, "i4k2m9", "", "i4k2m9"},
      {"my-box", true, Provider::kLocal, "my-box", "", "local:my-box"},
      {"local:box:src", false, Provider::kLocal, "box", "src", "local:box"},
      {"ssh:me@host:/srv", false, Provider::kSsh, "me@host", "/srv", "ssh:me@host"},
      {"ssh:[::1]:/srv", false, Provider::kSsh, "[::1]", "/srv", "ssh:[::1]"},
      {"ssh:host:a:b", false, Provider::kSsh, "host", "a:b", "ssh:host"},
      {"docker:web_1", false, Provider::kDocker, "web_1", "", "docker:web_1"},
  };
  for (const auto& row : rows) {
    const auto target = parse_target(row.text, row.local);
    ASSERT_TRUE(target) << row.text;
    EXPECT_EQ(target->provider, row.provider) << row.text;
    EXPECT_EQ(target->name, row.name) << row.text;
    EXPECT_EQ(target->dir, row.dir) << row.text;
    EXPECT_EQ(target->sandbox(), row.sandbox) << row.text;
  }
}

TEST(Target, RefusesWithTheForms) {
  for (const char* text : {"", "UPPER", "a/b", "ssh:", "docker:", "local::dir", "ssh:-oProxyCommand=x",
                           "docker:-x", "line\nbreak"}) {
    const auto target = parse_target(text, false);
    ASSERT_FALSE(target) << text;
    EXPECT_TRUE(api::is(target.error(), api::ErrorCode::kArgInvalid)) << text;
    EXPECT_NE(target.error().context.find("ssh:HOST"), std::string::npos) << text;
  }
}

// What the daemon is told is what the command understood.
TEST(Target, SandboxParsesToItself) {
  for (const char* text : {"i4k2m9", "local:my-box", "ssh:me@host", "ssh:[fe80::1]", "docker:web_1"}) {
    const auto target = parse_target(text, false);
    ASSERT_TRUE(target);
    const auto again = parse_target(target->sandbox(), false);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->provider, target->provider);
    EXPECT_EQ(again->name, target->name);
  }
}

}  // namespace
}  // namespace nearbox::daemon
