// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/processes.h"

#include <csignal>
#include <cstdlib>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

ProcessSpec spec_of(const std::string& script) {
  ProcessSpec spec;
  spec.command = "/bin/sh";
  spec.arguments = {"-c", script};
  spec.environment = {"PATH=/usr/bin:/bin"};
  spec.directory = "/";
  spec.user = User{"user", ::geteuid(), ::getegid(), "/", {}, false, false};
  return spec;
}

// Everything up to the process's end; nothing when that is not told in time.
std::optional<int> await_end(Subscription& events, std::string* output = nullptr) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  ProcessEvent event;
  while (events.pop(event, deadline) == Subscription::Pop::kEvent) {
    if (event.kind == ProcessEvent::Kind::kEnd) return event.wait_status;
    if (output != nullptr) output->append(event.data);
  }
  return std::nullopt;
}

TEST(Processes, KillZeroReachesTheCommandAlone) {
  ProcessTable table;
  auto other_events = std::make_shared<Subscription>();
  const auto other = table.start(spec_of("exec cat"), other_events);
  ASSERT_TRUE(other);
  auto events = std::make_shared<Subscription>();
  ASSERT_TRUE(table.start(spec_of("kill -9 0"), events));
  const auto status = await_end(*events);
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFSIGNALED(*status));
  EXPECT_FALSE((*other)->ended());
  ASSERT_TRUE((*other)->close_stdin());
  EXPECT_EQ(await_end(*other_events), 0);
}

TEST(Processes, EndedOnesMakeRoom) {
  ProcessTable table;
  for (std::size_t i = 0; i < kMaxProcesses + 2; ++i) {
    auto events = std::make_shared<Subscription>();
    const auto process = table.start(spec_of("exit 3"), events);
    ASSERT_TRUE(process) << i;
    const auto status = await_end(*events);
    ASSERT_TRUE(status);
    ASSERT_EQ(WEXITSTATUS(*status), 3);
  }
}

TEST(Processes, AStuckWriterDoesNotWithholdTheEnd) {
  (void)std::signal(SIGPIPE, SIG_IGN);
  ProcessTable table;
  auto events = std::make_shared<Subscription>();
  // A descendant holds the stdin that nobody reads, and nothing else.
  const auto process =
      table.start(spec_of("exec 3<&0; sleep 60 <&3 >/dev/null 2>&1 & echo up; exit 5"), events);
  ASSERT_TRUE(process);
  std::optional<base::Result<void>> written;
  std::jthread writer(
      [&] { written = (*process)->write_input(std::string(4U << 20U, 'x'), false, [] { return true; }); });
  std::string output;
  const auto status = await_end(*events, &output);
  (void)::kill(-(*process)->pid(), SIGKILL);
  ASSERT_TRUE(status);
  EXPECT_EQ(WEXITSTATUS(*status), 5);
  EXPECT_EQ(output, "up\n");
  writer.join();
  EXPECT_EQ(written->error().as_errno(), EPIPE);
}

}  // namespace
}  // namespace nearbox::sandbox_server
