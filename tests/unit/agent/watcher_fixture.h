// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <sys/mount.h>
#include <vector>

#include "tests/unit/agent/watch_test_util.h"

namespace nearbox::agent::test {

struct Kind {
  const char* name;
  const char* faults;
  wire::WatchKind kind;
};

inline void put(const std::string& path, const std::string& text, int flags = O_CREAT | O_TRUNC) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, 0644);
  (void)!::write(fd, text.data(), text.size());
  ::close(fd);
}

class WatcherTest : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    faults.set(GetParam().faults);
    for (const std::string point : {"agent.no_fanotify", "agent.no_fan_rename"}) {
      const bool on = std::string(GetParam().faults).find(point) != std::string::npos;
      ASSERT_TRUE(faults.reaches(point, "", on));
    }
    ASSERT_EQ(::mkdir(top.c_str(), 0755), 0);
    client = std::make_unique<Client>(watcher, top);
    if (client->reply.kind != GetParam().kind && ::geteuid() != 0) GTEST_SKIP() << "needs root";
    ASSERT_EQ(client->reply.kind, GetParam().kind) << client->reply.error;
  }
  // Does something elsewhere and expects the model to know it all at the barrier.
  void act(const std::function<void()>& action) {
    ASSERT_TRUE(other(action));
    client->settle();
    EXPECT_EQ(client->model->differences(), "");
  }
  void TearDown() override {
    client.reset();
    for (const auto& point : mounted) EXPECT_EQ(::umount2(point.c_str(), MNT_DETACH), 0);
  }
  std::string operator/(const std::string& name) const { return top + "/" + name; }
  // For another watcher: ours ends the counting of versions, which is the process', some time after its last
  // client went.
  bool make_room() {
    client.reset();
    return eventually([this] { return !watcher.watching(); });
  }

  Faults faults;
  TempDir dir{fast_directory()};
  base::Logger log{2, base::LogLevel::kError};
  Watcher watcher{log};
  const std::string top = dir / "top";
  std::unique_ptr<Client> client;
  std::vector<std::string> mounted;
  const Identity self_ = self();
};

// Every test runs with each way to watch.
inline auto kinds() {
  return ::testing::Values(Kind{"fanotify", "", wire::WatchKind::kFanotify},
                           Kind{"fanotify_basic", "agent.no_fan_rename\n", wire::WatchKind::kFanotify},
                           Kind{"inotify", "agent.no_fanotify\n", wire::WatchKind::kInotify});
}
inline std::string kind_name(const ::testing::TestParamInfo<Kind>& kind) { return kind.param.name; }

}  // namespace nearbox::agent::test
