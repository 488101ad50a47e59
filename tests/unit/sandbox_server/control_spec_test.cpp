// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/control_spec.h"

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

using nlohmann::json;

int status_of(const char* text, bool v2 = true) {
  try {
    (void)spec_of(json::parse(text), v2);
  } catch (const ApiError& error) {
    return error.status;
  } catch (const json::exception&) {
    return 400;
  }
  return 0;
}

TEST(SandboxSpecOf, DefaultsOfBothGenerations) {
  const auto body = json::parse(R"({"templateID":"base"})");
  EXPECT_EQ(spec_of(body, true).timeout, std::chrono::seconds(300));
  EXPECT_TRUE(spec_of(body, true).secure);
  EXPECT_EQ(spec_of(body, false).timeout, std::chrono::seconds(15));
  EXPECT_FALSE(spec_of(body, false).secure);
  EXPECT_TRUE(spec_of(body, true).auto_pause_memory);
}

TEST(SandboxSpecOf, RefusesWhatItCannotKeep) {
  for (const char* cannot :
       {R"({"templateID":"b","allow_internet_access":false})",
        R"({"templateID":"b","network":{"denyOut":["0.0.0.0/0"]}})",
        R"({"templateID":"b","network":{"rules":{"a.b":[]}}})",
        R"({"templateID":"b","network":{"egressProxy":{"address":"x"}}})",
        R"({"templateID":"b","network":{"httpsPorts":[1]}})",
        R"({"templateID":"b","network":{"dnsServers":["1.1.1.1"]}})",
        R"({"templateID":"b","volumeMounts":[{"name":"n","path":"/m"}]})",
        R"({"templateID":"b","mcp":{"exa":{}}})", R"({"templateID":"b","iam":{"tokens":{"t":{}}}})"}) {
    EXPECT_EQ(status_of(cannot), 501) << cannot;
  }
  for (const char* fine :
       {R"({"templateID":"b","network":{"denyOut":[],"rules":null},"volumeMounts":[]})",
        R"({"templateID":"b","allow_internet_access":true,"network":{"allowOut":["1.1.1.1"]}})"}) {
    EXPECT_EQ(status_of(fine), 0) << fine;
  }
}

TEST(SandboxSpecOf, RefusesWhatIsWrong) {
  for (const char* wrong :
       {R"({})", R"({"templateID":""})", R"({"templateID":7})", R"({"templateID":"b","timeout":0})",
        R"({"templateID":"b","timeout":86401})", R"({"templateID":"b","timeout":1.5})",
        R"({"templateID":"b","metadata":{"a":1}})", R"({"templateID":"b","envVars":{"A=B":"c"}})",
        R"({"templateID":"b","autoPauseMemory":false})",
        R"({"templateID":"b","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}})",
        R"({"templateID":"b","network":{"maskRequestHost":"a\r\nb"}})"}) {
    EXPECT_EQ(status_of(wrong), 400) << wrong;
  }
  EXPECT_EQ(status_of(R"({"templateID":"b","network":{"allowPublicTraffic":false}})", false), 400);
}

TEST(SandboxSpecOf, BoundsMaps) {
  json body = {{"templateID", "b"}, {"metadata", {{"k", std::string(2 * 1024 * 1024, 'x')}}}};
  EXPECT_THROW((void)spec_of(body, true), ApiError);
  body["metadata"] = json::object();
  for (int i = 0; i < 2000; ++i) body["metadata"]["k" + std::to_string(i)] = "v";
  EXPECT_THROW((void)spec_of(body, true), ApiError);
}

TEST(IdempotencyKey, IsChecked) {
  EXPECT_EQ(idempotency_key_of("abc-1"), "abc-1");
  for (const auto& bad : {std::string(), std::string("A"), std::string("a b"), std::string(256, 'a')})
    EXPECT_THROW((void)idempotency_key_of(bad), ApiError);
}

}  // namespace
}  // namespace nearbox::sandbox_server
