// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <csignal>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <thread>

#include "tests/unit/agent/watcher_fixture.h"

// Where the kernel tells less than what happens, or more than can be looked at.
namespace nearbox::agent {
namespace {

namespace fs = std::filesystem;
using test::other;
using test::put;

// Another process that does one thing after the other when told to.
class Helper {
 public:
  explicit Helper(std::vector<std::function<void()>> steps) : steps_(steps.size()) {
    EXPECT_EQ(::pipe2(go_, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(done_, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::close(go_[1]);
    char byte = 0;
    for (const auto& step : steps) {
      if (::read(go_[0], &byte, 1) != 1) ::_exit(1);
      step();
      (void)!::write(done_[1], &byte, 1);
    }
    (void)!::read(go_[0], &byte, 1);
    ::_exit(0);
  }
  ~Helper() {
    ::close(go_[1]);
    (void)::waitpid(pid_, nullptr, 0);
    for (const int fd : {go_[0], done_[0], done_[1]}) ::close(fd);
  }
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;
  void step() {
    ASSERT_GT(steps_--, 0U);
    char byte = 0;
    ASSERT_EQ(::write(go_[1], &byte, 1), 1);
    ASSERT_EQ(::read(done_[0], &byte, 1), 1);
  }

 private:
  std::size_t steps_;
  int go_[2] = {-1, -1};
  int done_[2] = {-1, -1};
  pid_t pid_ = -1;
};

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

std::vector<wire::Lost> losses(const test::Client& client) {
  std::vector<wire::Lost> all;
  for (const auto& event : client.events) {
    if (event.kind != wire::EventKind::kLost) continue;
    if (auto lost = wire::decode<wire::Lost>(event.body)) all.push_back(std::move(*lost));
  }
  return all;
}

class LimitsTest : public test::WatcherTest {
 protected:
  std::uint64_t version(const std::string& name) { return client->model->at(name)->attr.version; }
  void switch_on(const std::string& fault, bool on) {
    faults.set(GetParam().faults + (on ? fault + "\n" : std::string()));
    ASSERT_TRUE(faults.reaches(fault.substr(0, fault.find(' ')), "", on));
  }
};

// docs/semantics.md, "Maps": the limit itself. Should a kernel tell of such stores one day, this fails.
TEST_P(LimitsTest, StoresThroughAnOpenMapCountFromItsEnd) {
  act([&] { put(*this / "m", std::string(8192, 'x')); });
  const auto before = version("m");
  char* map = nullptr;
  Helper helper({[&] {
                   const int fd = ::open((*this / "m").c_str(), O_RDWR | O_CLOEXEC);
                   map = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
                   ::close(fd);
                   map[17] = 'a';
                 },
                 [&] { map[18] = 'b', ::msync(map, 8192, MS_SYNC); },
                 [&] { map[19] = 'c', ::munmap(map, 8192); }});
  helper.step();
  client->settle();
  EXPECT_EQ(version("m"), before);
  helper.step();
  client->settle();
  EXPECT_EQ(version("m"), before);
  helper.step();
  client->settle();
  EXPECT_GT(version("m"), before);
  EXPECT_EQ(client->model->differences(), "");
}

// The same of the kernel's asynchronous writes.
TEST_P(LimitsTest, AsynchronousWritesCountFromTheClose) {
  act([&] { put(*this / "a", std::string(8192, 'x')); });
  const auto before = version("a");
  int fd = -1;
  bool written = false;
  Helper helper({[&] {
                   fd = ::open((*this / "a").c_str(), O_RDWR | O_CLOEXEC);
                   aio_context_t context = 0;
                   std::string bytes(4096, 'y');
                   struct iocb one {};
                   one.aio_lio_opcode = IOCB_CMD_PWRITE;
                   one.aio_fildes = static_cast<std::uint32_t>(fd);
                   one.aio_buf = reinterpret_cast<std::uintptr_t>(bytes.data());
                   one.aio_nbytes = bytes.size();
                   struct iocb* all[] = {&one};
                   struct io_event event {};
                   written = ::syscall(SYS_io_setup, 1, &context) == 0 &&
                             ::syscall(SYS_io_submit, context, 1, all) == 1 &&
                             ::syscall(SYS_io_getevents, context, 1, 1, &event, nullptr) == 1;
                   if (!written) ::_exit(1);
                 },
                 [&] { ::close(fd); }});
  helper.step();
  client->settle();
  EXPECT_EQ(version("a"), before);
  helper.step();
  client->settle();
  EXPECT_GT(version("a"), before);
  EXPECT_EQ(client->model->differences(), "");
}

// Two changes within one step of the file's times, with what was read in between: neither size nor times tell
// them apart, the version does.
TEST_P(LimitsTest, ChangesWithinOneTickOfTheClock) {
  for (const char* tick : {"4ms", "1s"}) {
    faults.set(GetParam().faults + std::string("agent.coarse_times ") + tick + "\n");
    ASSERT_TRUE(faults.reaches("agent.coarse_times", tick, true));
    ASSERT_TRUE(other([&] { put(*this / "f", "000"); }));
    test::Client one(watcher, top);
    int fd = -1;
    int count = 100;
    constexpr std::size_t kMost = 500;
    Helper helper(std::vector<std::function<void()>>(kMost, [&] {
      if (fd < 0) fd = ::open((*this / "f").c_str(), O_WRONLY | O_CLOEXEC);
      (void)!::pwrite(fd, std::to_string(++count).data(), 3, 0);
    }));
    std::size_t equal = 0;
    for (std::size_t i = 0; i < kMost && equal < 5; ++i) {
      ASSERT_EQ(one.model->differences(), "");  // reads the bytes
      const auto before = one.model->at("f")->attr;
      helper.step();
      one.settle();
      const auto after = one.model->at("f")->attr;
      EXPECT_GT(after.version, before.version);
      if (after.mtime_ns == before.mtime_ns && after.ctime_ns == before.ctime_ns) ++equal;
    }
    ASSERT_EQ(one.model->differences(), "");
    EXPECT_EQ(one.model->losts, 0U);
    EXPECT_GT(equal, 0U) << tick;  // else it shows nothing
  }
}

// The kernel's own queue overflows (inotify), or holds more than is looked at name by name (fanotify).
TEST_P(LimitsTest, AQueueThatOverflows) {
  ASSERT_TRUE(make_room());
  Watcher small(log, Versions::process(), {kMaxDirs, 64 * 1024});
  constexpr int kFiles = 20'000;  // above the limit of inotify's queue
  ASSERT_TRUE(other([&] {
    fs::create_directory(*this / "d");
    for (int i = 0; i < kFiles; ++i) {
      (void)::mknod((*this / ("d/" + std::to_string(i))).c_str(), S_IFREG | 0644, 0);
    }
  }));
  test::Client one(small, top);
  switch_on("agent.hold_watch", true);
  {
    const std::jthread held([&] { (void)small.barrier(&one, 1, test::Client::soon()); });
    ASSERT_TRUE(test::eventually([&] { return small.answering(); }));  // else it reads what comes
    ASSERT_TRUE(other([&] {
      for (int i = 0; i < kFiles; ++i) ::chmod((*this / ("d/" + std::to_string(i))).c_str(), 0600);
      put(*this / "d/7", "seven");
      fs::create_directories(*this / "d/new/er");
      fs::rename(*this / "d/new", *this / "new");
    }));
    switch_on("agent.hold_watch", false);
  }
  one.settle();
  if (GetParam().kind == wire::WatchKind::kInotify) {
    EXPECT_GE(one.model->losts, 1U);
  }
  ASSERT_EQ(one.model->differences(), "");
  ASSERT_TRUE(other([&] { put(*this / "new/er/f", "seen again"); }));
  one.settle();
  EXPECT_EQ(one.model->differences(), "");
}

// More is queued than is looked at name by name: its directory is read again, once for what came before the
// thread stood still and once for the rest, and no content is forgotten.
TEST_P(LimitsTest, TooFarBehindIsReadAgainByDirectory) {
  ASSERT_TRUE(make_room());
  Watcher small(log, Versions::process(), {kMaxDirs, 64 * 1024});
  constexpr int kFiles = 12'000;  // below the limit of inotify's queue
  ASSERT_TRUE(other([&] {
    for (int i = 0; i < kFiles; ++i) {
      (void)::mknod((*this / std::to_string(i)).c_str(), S_IFREG | 0644, 0);
    }
  }));
  test::Client one(small, top);
  one.settle();
  const auto before = one.model->losts;
  switch_on("agent.hold_watch", true);
  {
    // A watch, not a barrier: that one reads what is queued.
    EventLog events;
    const std::jthread call([&] { (void)small.watch(&events, events, 1, one.root, test::Client::soon()); });
    ASSERT_TRUE(test::eventually([&] { return small.answering(); }));
    ASSERT_TRUE(other([&] {
      for (int i = 0; i < kFiles; ++i) ::chmod((*this / std::to_string(i)).c_str(), 0600);
    }));
    switch_on("agent.hold_watch", false);
    EXPECT_TRUE(one.catches_up());
    small.forget(&events);
  }
  one.settle();
  EXPECT_EQ(one.model->differences(), "");
  EXPECT_LE(one.model->losts, before + 2);
  for (const auto& each : losses(one)) EXPECT_FALSE(each.content || each.recursive);
}

// So much happens in one directory that it is told as a whole; what happens elsewhere is told by name, and
// nothing of it is forgotten.
TEST_P(LimitsTest, AStormInOneDirectory) {
  client.reset();
  constexpr std::size_t kNames = 200;
  Watcher small(log, Versions::process(), {kMaxDirs, kMaxQueuedBytes, kNames});
  ASSERT_TRUE(other([&] {
    fs::create_directories(*this / "storm/below");
    fs::create_directories(*this / "calm");
    put(*this / "calm/f", "before");
    for (int i = 0; i < 2000; ++i) put(*this / ("storm/" + std::to_string(i)), "before");
    put(*this / "storm/below/f", "before");
  }));
  test::Client one(small, top);
  ASSERT_EQ(one.model->differences(), "");  // reads the bytes
  const auto calm = one.model->at("calm/f")->attr.version;
  const auto below = one.model->at("storm/below/f")->attr.version;
  const auto quiet = one.model->at("storm/1999")->attr.version;
  for (int round = 0; round < 3; ++round) {
    switch_on("agent.hold_watch", true);
    {
      const std::jthread held([&] { (void)small.barrier(&one, 1, test::Client::soon()); });
      ASSERT_TRUE(other([&] {
        for (int i = 0; i < 1900; ++i) {
          const auto name = *this / ("storm/" + std::to_string(i));
          if (i % 3 == 0) put(name, "round" + std::to_string(round), 0);
          if (i % 3 == 1) ::unlink(name.c_str()), put(name, "another");
          if (i % 3 == 2) fs::rename(name, name + "r"), fs::rename(name + "r", name);
        }
        fs::create_directories(*this / ("storm/new" + std::to_string(round) + "/deep"));
        put(*this / ("storm/new" + std::to_string(round) + "/deep/f"), "new");
        fs::rename(*this / ("storm/new" + std::to_string(round)), *this / ("calm/n" + std::to_string(round)));
      }));
      switch_on("agent.hold_watch", false);
    }
    one.settle();
    ASSERT_EQ(one.model->differences(), "");
    ASSERT_TRUE(other([&] {
      for (int r = 0; r <= round; ++r) put(*this / ("calm/n" + std::to_string(r) + "/deep/f"), "seen");
    }));
    one.settle();
    ASSERT_EQ(one.model->differences(), "");
  }
  const auto lost = losses(one);
  EXPECT_GE(lost.size(), 3U);
  for (const auto& each : lost) {
    EXPECT_EQ(each.path, "storm");
    EXPECT_FALSE(each.recursive);
    EXPECT_FALSE(each.content);
  }
  EXPECT_EQ(one.model->at("calm/f")->attr.version, calm);
  EXPECT_EQ(one.model->at("storm/below/f")->attr.version, below);
  EXPECT_EQ(one.model->at("storm/1999")->attr.version, quiet);
}

// While one directory is changed without a pause, in ever new names, what happens elsewhere is told all the
// same.
TEST_P(LimitsTest, AStormHoldsUpNobody) {
  ASSERT_TRUE(
      other([&] { fs::create_directories(*this / "storm"), fs::create_directories(*this / "calm"); }));
  client->settle();
  const pid_t writer = ::fork();
  ASSERT_GE(writer, 0);
  if (writer == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0;; i = (i + 1) % 20'000) {
      put(*this / ("storm/" + std::to_string(i)), "x");
      // A watcher ten times as slow as a writer without a pause never comes to the end of what is queued.
      if (kSlow) ::usleep(1000);
    }
  }
  for (int i = 0; i < 20; ++i) {
    const auto name = "calm/" + std::to_string(i);
    ASSERT_TRUE(other([&] { put(*this / name, "x"); }));
    ASSERT_TRUE(test::eventually([&] {
      client->take();
      return client->model->at(name) != nullptr;
    }));
  }
  const auto meanwhile = losses(*client).size();
  ::kill(writer, SIGKILL);
  (void)::waitpid(writer, nullptr, 0);
  client->settle();
  bool everything = false;  // lost: the queue of inotify is short
  for (const auto& each : losses(*client)) everything = everything || each.path != "storm";
  if (GetParam().kind == wire::WatchKind::kFanotify) {
    EXPECT_FALSE(everything);
    // The storm was told fewer times than names beside it: none of them waited for it to be told.
    EXPECT_LT(meanwhile, 20U);
  }
  EXPECT_EQ(client->model->differences(), "");
}

// One directory of an outer root that inotify watches is watched by fanotify for an inner root.
TEST_P(LimitsTest, RootsWithinRootsOfDifferentKinds) {
  if (GetParam().kind != wire::WatchKind::kInotify || ::geteuid() != 0) return;
  act([&] { fs::create_directories(*this / "in/ner"); });
  faults.set("");
  ASSERT_TRUE(faults.reaches("agent.no_fanotify", "", false));
  test::Client inner(watcher, *this / "in");
  ASSERT_EQ(inner.reply.kind, wire::WatchKind::kFanotify);
  const auto both = [&] {
    client->settle();
    inner.settle();
    EXPECT_EQ(client->model->differences(), "");
    EXPECT_EQ(inner.model->differences(), "");
  };
  ASSERT_TRUE(other([&] { put(*this / "in/ner/f", "f"); }));
  both();
  ASSERT_TRUE(other([&] { fs::create_directories(*this / "in/a/b/c"); }));
  ASSERT_TRUE(other([&] { put(*this / "in/a/b/c/g", "g"); }));
  both();
  ASSERT_TRUE(other([&] { fs::rename(*this / "in/a", *this / "a"); }));
  ASSERT_TRUE(other([&] { put(*this / "a/b/h", "h"); }));
  both();
  ASSERT_TRUE(other([&] { fs::rename(*this / "a", *this / "in/z"); }));
  ASSERT_TRUE(other([&] { fs::remove_all(*this / "in/ner"); }));
  both();
}

INSTANTIATE_TEST_SUITE_P(Kinds, LimitsTest, test::kinds(), test::kind_name);

}  // namespace
}  // namespace nearbox::agent
