// SPDX-License-Identifier: Apache-2.0
#include "client/http/deploy.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include <gtest/gtest.h>

#include "client/api/error_code.h"
#include "client/http/envd.h"
#include "tests/unit/http/fake_envd.h"

namespace nearbox::http {
namespace {

using api::code_string;
using api::error_text;
using std::chrono::milliseconds;
using test::FakeEnvd;
using test::FaultConnection;
using test::FaultRequest;

api::Deadline soon() { return std::chrono::steady_clock::now() + milliseconds(20'000); }

const std::string kToken(64, 'a');

class DeployTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "nearbox-deploy.XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    std::ofstream(dir_ + "/agent") << std::string(2'000'000, 'A');
    options_.agent_path = dir_ + "/agent";
    build_ = *agent_build(options_.agent_path);
    path_ = "/usr/local/bin/nearbox-agent-" + build_;
    fake_.set_run([this](const std::string& cmd, const std::vector<std::string>&) { return launch(cmd); });
    config_.sandbox_url = fake_.url();
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  FakeEnvd::RunReply launch(const std::string& cmd) const {
    if (!cmd.ends_with(build_)) return {"", "not found", 127};
    return {R"({"port":40001,"token":")" + kToken + R"(","pid":9,"build":")" + build_ + "\"}\n", "", 0};
  }
  base::Result<AgentAddress> deploy() {
    const api::SandboxAccess access{
        *api::SandboxId::parse("iabc"), "", base::Secret("tok"), {}, "", "", false};
    HttpEnvd envd(client_, access.id, route_to(config_, access, kEnvdPort));
    return deploy_agent(envd, options_, soon());
  }

  std::string dir_, build_, path_;
  DeployOptions options_;
  api::Config config_;
  FakeEnvd fake_;
  HttpClient client_;
};

TEST_F(DeployTest, UploadsOnceThenFindsItAgain) {
  for (int i = 0; i < 3; ++i) {
    auto address = deploy();
    ASSERT_TRUE(address) << error_text(address.error());
    EXPECT_EQ(address->port, 40001);
    EXPECT_EQ(address->token.reveal(), kToken);
    EXPECT_EQ(address->build, build_);
  }
  EXPECT_EQ(fake_.uploads(), 1u);
  const auto files = fake_.files();
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files.begin()->first, path_);
  EXPECT_EQ(files.begin()->second.mode, 0755u);
  EXPECT_EQ(fake_.commands(),
            (std::vector<std::string>{"chmod 755", path_ + " launch", path_ + " launch", path_ + " launch"}));
}

TEST_F(DeployTest, BuildIsTheHashOfTheFile) {
  std::ofstream(dir_ + "/abc") << "abc";
  EXPECT_EQ(*agent_build(dir_ + "/abc"), "ba7816bf8f01cfea");
  EXPECT_EQ(code_string(agent_build(dir_ + "/none").error()), "local.not_found");
}

TEST_F(DeployTest, ParallelDeploymentsDoNotMeet) {
  std::vector<std::jthread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      if (deploy()) ++good;
    });
  }
  threads.clear();
  EXPECT_EQ(good.load(), 8);
  const auto files = fake_.files();
  ASSERT_EQ(files.size(), 1u);  // every upload had a name of its own and is gone
  EXPECT_EQ(files.at(path_).bytes.size(), 2'000'000u);
}

TEST_F(DeployTest, AnAbortedUploadLeavesTheAgentAlone) {
  fake_.set_before([](FaultConnection& c, FaultRequest& r) {
    if (r.method != "POST" || !r.target.starts_with("/files?")) return false;
    std::string some;
    c.send("HTTP/1.1 100 Continue\r\n\r\n");
    c.read_raw(some, 100'000);
    c.reset();
    return true;
  });
  auto address = deploy();
  ASSERT_FALSE(address);
  EXPECT_EQ(code_string(address.error()), "net.unreachable") << error_text(address.error());
  EXPECT_EQ(fake_.files().count(path_), 0u);
  fake_.set_before(nullptr);
  ASSERT_TRUE(deploy());
}

TEST_F(DeployTest, StaleUploadsAreRemovedFreshOnesStay) {
  const std::string stale = "/usr/local/bin/nearbox-agent-0123456789abcdef.new.aaaa";
  const std::string fresh = "/usr/local/bin/nearbox-agent-0123456789abcdef.new.bbbb";
  const std::string foreign = "/usr/local/bin/tool.new.cccc";
  fake_.put(stale, {"x", 0644, "2026-06-01T10:00:00Z"});
  fake_.put(fresh, {"x", 0644, "2026-06-01T11:59:00Z"});
  fake_.put(foreign, {"x", 0644, "2020-01-01T00:00:00Z"});
  ASSERT_TRUE(deploy());
  const auto files = fake_.files();
  EXPECT_EQ(files.count(stale), 0u);
  EXPECT_EQ(files.count(fresh), 1u);
  EXPECT_EQ(files.count(foreign), 1u);
}

TEST_F(DeployTest, ADamagedAgentIsReplaced) {
  fake_.put(path_, {std::string(10, 'x'), 0755});  // wrong size: never started
  ASSERT_TRUE(deploy());
  EXPECT_EQ(fake_.uploads(), 1u);
  int calls = 0;
  fake_.set_run([&](const std::string& cmd, const std::vector<std::string>&) {
    return ++calls == 1 ? FakeEnvd::RunReply{"", "Exec format error", 126} : launch(cmd);
  });
  ASSERT_TRUE(deploy());  // right size, wrong bytes
  EXPECT_EQ(fake_.uploads(), 2u);
}

TEST_F(DeployTest, GoesElsewhereWhenADirectoryCannotBeWritten) {
  fake_.set_before([](FaultConnection& c, FaultRequest& r) {
    if (r.method != "POST" || r.target.find("local") == std::string::npos ||
        !r.target.starts_with("/files?")) {
      return false;
    }
    c.respond(500, R"({"code":500,"message":"open: read-only file system"})");
    return true;
  });
  auto address = deploy();
  ASSERT_TRUE(address) << error_text(address.error());
  EXPECT_EQ(fake_.files().count("/root/nearbox-agent-" + build_), 1u);
}

TEST_F(DeployTest, TheTokenIsInNoRequestAndNoError) {
  ASSERT_TRUE(deploy());
  for (const auto& request : fake_.requests()) {
    EXPECT_EQ(request.body.find(kToken), std::string::npos);
    EXPECT_EQ(request.target.find(kToken), std::string::npos);
  }
  fake_.set_run([](const std::string&, const std::vector<std::string>&) {
    return FakeEnvd::RunReply{R"({"port":0,"token":")" + kToken + "\"}\n", "cannot listen", 1};
  });
  const auto error = deploy().error();
  EXPECT_EQ(error_text(error).find(kToken), std::string::npos);
  EXPECT_NE(error_text(error).find("cannot listen"), std::string::npos);
}

TEST_F(DeployTest, AWrongTokenOfTheSandboxEndsAtOnce) {
  const api::SandboxAccess access{*api::SandboxId::parse("iabc"), "", base::Secret("bad"), {}, "", "", false};
  HttpEnvd envd(client_, access.id, route_to(config_, access, kEnvdPort));
  EXPECT_EQ(code_string(deploy_agent(envd, options_, soon()).error()), "auth.rejected");
  EXPECT_EQ(fake_.server().requests(), 1u);
}

TEST(LaunchLine, Shapes) {
  const std::string good = R"({"port":1,"token":")" + kToken + R"(","pid":9,"build":"0123456789abcdef"})";
  EXPECT_TRUE(parse_launch_line(good + "\n"));
  EXPECT_FALSE(parse_launch_line(good));  // the line was cut
  for (const std::string& bad :
       {std::string(), std::string("{}"), std::string("x"),
        R"({"port":0,"token":")" + kToken + R"(","build":"0123456789abcdef"})",
        R"({"port":70000,"token":")" + kToken + R"(","build":"0123456789abcdef"})",
        std::string(R"({"port":1,"token":"abc","build":"0123456789abcdef"})"),
        R"({"port":1,"token":")" + std::string(64, 'g') + R"(","build":"0123456789abcdef"})",
        R"({"port":1,"token":")" + kToken + R"(","build":"../../x"})"}) {
    EXPECT_FALSE(parse_launch_line(bad + "\n")) << bad;
  }
}

}  // namespace
}  // namespace nearbox::http
