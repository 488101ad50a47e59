// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <poll.h>
#include <spawn.h>
#include <sstream>
#include <string>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <gtest/gtest.h>

#include "client/channel/agent_link_impl.h"
#include "client/channel/fd_carrier.h"
#include "fs/core/tree_hooks.h"
#include "fs/fuse/fuse_loop.h"
#include "fs/fuse/watchdog.h"
#include "sync/engine/event_stream.h"
#include "sync/engine/tree_store.h"
#include "tools/agent/agent.h"

extern char** environ;  // NOLINT(readability-redundant-declaration)

// A real agent in this process, serving a temporary directory to real mounts.
namespace nearbox::fs::test {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
namespace stdfs = std::filesystem;

inline bool eventually(const std::function<bool()>& done, std::chrono::milliseconds limit = 20s) {
  const auto end = Clock::now() + limit;
  while (!done()) {
    if (Clock::now() > end) return false;
    ::poll(nullptr, 0, 2);
  }
  return true;
}

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/nearbox-fuse-XXXXXX";
    path_ = ::mkdtemp(name) != nullptr ? name : "";
  }
  ~TempDir() {
    if (!path_.empty()) stdfs::remove_all(path_);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Until the times of a file can tell its next change from the last one: younger ones are read again where
// nobody counts changes.
inline void grow_old(const std::string& path) {
  struct stat st {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  const auto tick = st.st_ctim.tv_nsec == 0 ? 1000ms : 20ms;
  ASSERT_TRUE(eventually([&] {
    struct timespec now {};
    (void)::clock_gettime(CLOCK_REALTIME_COARSE, &now);
    const auto age = std::chrono::seconds(now.tv_sec - st.st_ctim.tv_sec) +
                     std::chrono::nanoseconds(now.tv_nsec - st.st_ctim.tv_nsec);
    return age > 2 * tick;
  }));
}

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}
inline void spill(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

// A program that runs beside the test.
class Child {
 public:
  explicit Child(std::vector<std::string> words) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    out_ = base::UniqueFd(ends[0]);
    const base::UniqueFd in(ends[1]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in.get(), 1);
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    EXPECT_EQ(::posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0) << words[0];
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      (void)wait(20s);
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  // One line of its output; "" at the deadline or the end.
  std::string line(std::chrono::milliseconds limit = 20s) {
    std::string text;
    const auto end = Clock::now() + limit;
    while (true) {
      pollfd wait{out_.get(), POLLIN, 0};
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
      if (left <= 0 || ::poll(&wait, 1, static_cast<int>(left)) <= 0) return "";
      char c = 0;
      if (::read(out_.get(), &c, 1) != 1 || c == '\n') return text;
      text += c;
    }
  }
  std::string rest() {
    std::string text;
    char buffer[4096];
    ssize_t n = 0;
    while ((n = ::read(out_.get(), buffer, sizeof(buffer))) > 0)
      text.append(buffer, static_cast<std::size_t>(n));
    return text;
  }
  // Its exit code, 128 + signal, or nothing in time.
  std::optional<int> wait(std::chrono::milliseconds limit = 20s) {
    if (pid_ <= 0) return status_;
    const base::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    pollfd poll_fd{pidfd.get(), POLLIN, 0};
    if (::poll(&poll_fd, 1, static_cast<int>(limit.count())) <= 0) return std::nullopt;
    int raw = 0;
    ::waitpid(pid_, &raw, 0);
    pid_ = -1;
    status_ = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
    return status_;
  }
  void signal(int number) {
    if (pid_ > 0) ::kill(pid_, number);  // -1 would be everybody
  }
  void kill() { signal(SIGKILL); }

 private:
  base::UniqueFd out_;
  pid_t pid_ = -1;
  std::optional<int> status_;
};

// Output of a program; fails the test when it fails.
inline std::string output(std::vector<std::string> words) {
  Child child(std::move(words));
  std::string text = child.rest();
  EXPECT_EQ(child.wait(), 0);
  return text;
}

// Every name below a directory, with what stat tells of it.
inline std::string listing(const std::string& where) {
  return output(
      {"sh", "-c", "cd '" + where + "' && find . -printf '%p %y %s %m %n %T@ %i\\n' | LC_ALL=C sort"});
}

class Faults {
 public:
  static const char* file() { return std::getenv("NEARBOX_FAULT_FILE"); }
  explicit Faults(const std::string& lines) {
    spill(file(), lines);
    ::poll(nullptr, 0, 30);  // the points are read again after 20 ms
  }
  ~Faults() {
    spill(file(), "");
    ::poll(nullptr, 0, 30);
  }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;
};

// An agent in this process that serves connections over socket pairs.
class LocalAgent {
 public:
  explicit LocalAgent(base::Logger& log) : log_(log) { make(); }
  ~LocalAgent() { stop(); }
  LocalAgent(const LocalAgent&) = delete;
  LocalAgent& operator=(const LocalAgent&) = delete;

  base::Result<channel::Dialled> dial() {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
      return base::last_errno("socketpair");
    auto ours = channel::FdCarrier::from_socket(base::UniqueFd(pair[0]));
    auto theirs = channel::FdCarrier::from_socket(base::UniqueFd(pair[1]));
    if (!ours || !theirs) return base::errno_error(EIO, "carrier");
    const std::lock_guard lock(mu_);
    if (!agent_) return base::errno_error(ECONNREFUSED, "agent");
    threads_.emplace_back([agent = agent_.get(), carrier = std::move(*theirs)] { agent->serve(*carrier); });
    channel::Dialled dialled;
    dialled.carrier = std::move(*ours);
    return dialled;
  }
  void stop() {
    std::vector<std::jthread> threads;
    {
      const std::lock_guard lock(mu_);
      if (agent_) agent_->stop();
      threads.swap(threads_);
    }
    threads.clear();
    const std::lock_guard lock(mu_);
    agent_.reset();
  }
  void restart() {
    stop();
    make();
  }

 private:
  void make() {
    agent::Agent::Options options;
    options.who.uid = options.who.agent_uid = ::geteuid();
    options.who.gid = options.who.agent_gid = ::getegid();
    options.build = "test";
    const std::lock_guard lock(mu_);
    agent_ = std::make_unique<agent::Agent>(std::move(options), log_);
  }
  base::Logger& log_;
  std::mutex mu_;
  std::unique_ptr<agent::Agent> agent_;
  std::vector<std::jthread> threads_;
};

// Everything a daemon has for one root.
class World {
 public:
  explicit World(const std::string& root, int workers = 2) : agent(log) {
    channel::LinkConfig config;
    config.dial = [this](wire::Role, channel::Deadline) { return agent.dial(); };
    config.backoff_min = 10ms;
    link = channel::make_agent_link(std::move(config), timers, log);
    tree = std::make_unique<sync::TreeStore>(*link, timers, log);
    events = std::make_unique<sync::EventStream>(*link, log);
    ops = std::make_unique<OpLog>(*link, timers, log, [root] { return root; });
    ops->attach(*events);
    cache = std::make_unique<BlockCache>(*link, tree_hooks(*tree, *link, *ops, timers));
    events->start();
    FuseLoopOptions options;
    options.workers = workers;
    loop = std::make_unique<FuseLoop>(options, log);
    wait([&](sync::TreeStore::Done done) { tree->open_root(root, Clock::now() + 20s, std::move(done)); });
  }
  ~World() {
    sessions.clear();
    loop.reset();
    events->stop();
    ops->close();
    cache->close();
    events.reset();
    tree.reset();
    link.reset();
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  void load() {
    wait([&](sync::TreeStore::Done done) { tree->load("", Clock::now() + 60s, {}, std::move(done)); });
  }
  void rescan() {
    wait([&](sync::TreeStore::Done done) { tree->rescan(Clock::now() + 60s, std::move(done)); });
  }
  FsServices services() { return {*tree, *ops, *cache, *link, timers}; }
  MountSession* mount(MountOptions options) {
    options.uid = ::geteuid();
    options.gid = ::getegid();
    auto session = loop->mount(options, services());
    EXPECT_TRUE(session.ok()) << session.error().message();
    if (!session) return nullptr;
    sessions.push_back(std::move(*session));
    return sessions.back().get();
  }
  MountSession* mount(const std::string& where, const std::string& path = "") {
    MountOptions options;
    options.mountpoint = where;
    options.path = path;
    options.watchdog_program = "";
    return mount(options);
  }

  static void wait(const std::function<void(sync::TreeStore::Done)>& start) {
    auto result = std::make_shared<std::atomic<int>>(-1);
    start([result](int error) { *result = error; });
    ASSERT_TRUE(eventually([&] { return *result >= 0; }, 60s));
    ASSERT_EQ(*result, 0);
  }

  base::Logger log{2, base::LogLevel::kWarn};
  base::Timers timers;
  LocalAgent agent;
  std::unique_ptr<channel::Link> link;
  std::unique_ptr<sync::TreeStore> tree;
  std::unique_ptr<sync::EventStream> events;
  std::unique_ptr<OpLog> ops;
  std::unique_ptr<BlockCache> cache;
  std::unique_ptr<FuseLoop> loop;
  std::vector<std::unique_ptr<MountSession>> sessions;
};

// A directory to serve and places to mount it.
class MountTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0 && ::access("/dev/fuse", R_OK | W_OK) != 0) {
      std::puts("SKIP: needs root or a /dev/fuse that is open to all");
      std::exit(77);
    }
    for (const char* name : {"src", "mnt", "mnt2"}) stdfs::create_directory(dir.path() + "/" + name);
    src = dir.path() + "/src";
    mnt = dir.path() + "/mnt";
    mnt2 = dir.path() + "/mnt2";
  }
  void TearDown() override {
    world.reset();
    for (const auto& path : {mnt, mnt2}) ::umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  }
  void start(int workers = 2) {
    world = std::make_unique<World>(src, workers);
    world->load();
  }
  TempDir dir;
  std::string src, mnt, mnt2;
  std::unique_ptr<World> world;
};

}  // namespace nearbox::fs::test
