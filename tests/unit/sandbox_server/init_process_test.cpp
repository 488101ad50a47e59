// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "client/base/fault.h"
#include "tools/sandbox_server/sandbox.h"

namespace nearbox::sandbox_server {
namespace {

namespace stdfs = std::filesystem;

// An init of sh that says it is ready and ends when its lifeline does.
constexpr const char* kInit = "#!/bin/sh\nprintf ready >&3\ncat <&3 >/dev/null\n";

class InitProcessTest : public ::testing::TestWithParam<bool> {
 protected:
  InitProcessTest() {
    std::string name = (stdfs::temp_directory_path() / "nearbox-init-XXXXXX").string();
    dir = ::mkdtemp(name.data());
    std::ofstream(dir / "faults") << (GetParam() ? "" : "sandbox_server.no_pidfd\n");
    base::fault::set_file((dir / "faults").string());
    std::ofstream(dir / "init") << kInit;
    EXPECT_EQ(::chmod((dir / "init").c_str(), 0755), 0);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (base::fault::active("sandbox_server.no_pidfd") == GetParam()) {
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "the fault point does not change";
        break;
      }
      std::this_thread::yield();
    }
  }
  ~InitProcessTest() override {
    base::fault::set_file("");
    std::error_code ignored;
    stdfs::remove_all(dir, ignored);
  }
  stdfs::path dir;
};

TEST_P(InitProcessTest, EndsAndReapsWhatItStarted) {
  Launcher launcher;
  launcher.init_program = (dir / "init").string();
  InitConfig config;
  config.id = "t";
  auto init = InitProcess::launch(launcher, config, -1);
  ASSERT_TRUE(init) << init.error().message();
  const pid_t pid = (*init)->pid();
  EXPECT_TRUE((*init)->running());
  const auto before = std::chrono::steady_clock::now();
  init->reset();
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(10))
      << "was not waited for, but killed";
  EXPECT_EQ(::kill(pid, 0), -1) << "still there, or not reaped";
}

// The two sockets are put at 3 and 4 by way of other numbers, which must not be theirs.
TEST_P(InitProcessTest, GetsItsSocketWhateverItsNumber) {
  std::ofstream(dir / "init", std::ios::trunc)
      << "#!/bin/sh\nprintf listen >&4\nprintf ready >&3\ncat <&3 >/dev/null\n";
  Launcher launcher;
  launcher.init_program = (dir / "init").string();
  InitConfig config;
  config.id = "t";
  for (const int number : {5, 59, 60, 61, 62, 200}) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const base::UniqueFd reads(ends[0]);
    const base::UniqueFd low(ends[1]);
    const base::UniqueFd writes(::fcntl(low.get(), F_DUPFD_CLOEXEC, number));
    auto init = InitProcess::launch(launcher, config, writes.get());
    ASSERT_TRUE(init) << number << ": " << init.error().message();
    std::array<char, 16> text{};
    EXPECT_EQ(::read(reads.get(), text.data(), text.size()), 6) << number;
    EXPECT_STREQ(text.data(), "listen");
  }
}

INSTANTIATE_TEST_SUITE_P(SandboxServer, InitProcessTest, ::testing::Values(true, false),
                         [](const auto& which) { return which.param ? "WithPidfd" : "WithoutPidfd"; });

}  // namespace
}  // namespace nearbox::sandbox_server
