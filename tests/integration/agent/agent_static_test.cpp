// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <gtest/gtest.h>

#include "client/channel/fd_carrier.h"
#include "client/channel/frame.h"
#include "client/channel/handshake.h"
#include "tests/unit/agent/agent_test_util.h"
#include "tools/agent/state_file.h"

// The program itself, through its stdio relay, in root directories that have next to nothing.
namespace nearbox::agent {
namespace {

using Clock = std::chrono::steady_clock;
using wire::Method;

struct Where {
  std::string root;  // "": this machine's own root, else a chroot with a proc of its own
  std::string program = NEARBOX_AGENT_BINARY;
  uid_t uid = 0;
};

// Runs in the child between fork and exec.
[[noreturn]] void become(const Where& where, const std::vector<std::string>& args) {
  if (!where.root.empty()) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      ::_exit(101);
    if (::mount("proc", (where.root + "/proc").c_str(), "proc", 0, nullptr) != 0) ::_exit(102);
    if (::chroot(where.root.c_str()) != 0 || ::chdir("/") != 0) ::_exit(103);
  }
  if (where.uid != 0 && (::setgid(where.uid) != 0 || ::setuid(where.uid) != 0)) ::_exit(104);
  std::vector<char*> argv{const_cast<char*>("nearbox-agent")};
  for (const auto& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  ::execv(where.program.c_str(), argv.data());
  ::_exit(105);
}

// A relay and the connection through it.
class Client {
 public:
  Client(const Where& where, std::vector<std::string> args, std::uint8_t session) {
    int in[2];
    int out[2];
    if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) std::abort();
    args.insert(args.begin(), "connect");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(in[0], 0);
      ::dup2(out[1], 1);
      become(where, args);
    }
    ::close(in[0]);
    ::close(out[1]);
    carrier_ = std::move(*channel::FdCarrier::from_pipes(base::UniqueFd(out[0]), base::UniqueFd(in[1])));
    greet(session);
  }
  ~Client() { kill(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  const wire::Welcome& welcome() const { return welcome_; }

  template <class Reply, class M>
  Reply call(Method method, const M& message) {
    wire::Bytes payload = wire::encode(wire::CallHead{1 << 20, 20'000});
    const auto body = wire::encode(message);
    payload.insert(payload.end(), body.begin(), body.end());
    const auto end = transact(method, payload, wire::FrameType::kEnd);
    return wire::decode<Reply>(end).value_or(Reply{});
  }
  void note(Method method, const wire::Bytes& payload) {
    wire::Bytes out;
    channel::append_frame(out, wire::FrameType::kNote, 0, static_cast<std::uint16_t>(method), 0, payload);
    ASSERT_TRUE(carrier_->write(out, deadline()).ok());
  }
  // The first chunk of a subscription.
  wire::Bytes events(const wire::Subscribe& request) {
    wire::Bytes payload = wire::encode(wire::CallHead{1 << 20, 0});
    const auto body = wire::encode(request);
    payload.insert(payload.end(), body.begin(), body.end());
    return transact(Method::kSubscribe, payload, wire::FrameType::kChunk);
  }
  int last_error() const { return error_; }

 private:
  static channel::Deadline deadline() { return Clock::now() + std::chrono::seconds(30); }

  void greet(std::uint8_t session) {
    std::byte byte{};
    while (line_.empty() || line_.back() != '\n') {
      auto n = carrier_->read({&byte, 1}, deadline());
      ASSERT_TRUE(n.ok()) << n.error().message();
      ASSERT_EQ(*n, 1U) << "the relay ended";
      line_.push_back(static_cast<char>(byte));
    }
    const auto space = line_.rfind(' ');
    const auto token = token_from_hex(line_.substr(space + 1, line_.size() - space - 2));
    ASSERT_TRUE(token) << "no token in the first line";
    wire::Hello hello;
    hello.token = *token;
    hello.session.fill(std::byte{session});
    ASSERT_TRUE(channel::send_hello(*carrier_, hello, deadline()).ok());
    auto welcome = channel::read_welcome(*carrier_, deadline());
    ASSERT_TRUE(welcome.ok()) << welcome.error().message();
    welcome_ = *welcome;
    frames_ = std::make_unique<channel::FrameReader>(*carrier_);
  }
  wire::Bytes transact(Method method, const wire::Bytes& payload, wire::FrameType wanted) {
    wire::Bytes out;
    const auto id = ++calls_;
    channel::append_frame(out, wire::FrameType::kCall, 0, static_cast<std::uint16_t>(method), id, payload);
    EXPECT_TRUE(carrier_->write(out, deadline()).ok());
    while (true) {
      auto frame = frames_->next(deadline());
      if (!frame || !*frame) {
        ADD_FAILURE() << "no answer";
        return {};
      }
      const auto& head = (*frame)->head;
      if (head.type == wire::FrameType::kEnd && head.call_id == id) error_ = head.code;
      const bool ended = head.type == wire::FrameType::kEnd && head.call_id == id;
      if ((head.type == wanted && head.call_id == id) || ended) {
        return {(*frame)->payload.begin(), (*frame)->payload.end()};
      }
    }
  }

  pid_t pid_ = -1;
  std::unique_ptr<channel::FdCarrier> carrier_;
  std::unique_ptr<channel::FrameReader> frames_;
  wire::Welcome welcome_;
  std::string line_;
  std::uint32_t calls_ = 0;
  int error_ = 0;
};

class StaticAgent : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "chroot and mounts need root";
    ::signal(SIGPIPE, SIG_IGN);
    where.root = dir.path;
    where.program = "/nearbox-agent";
    ASSERT_EQ(::chmod(dir.path.c_str(), 0755), 0);
    ASSERT_EQ(::mkdir((dir / "proc").c_str(), 0755), 0);
    std::filesystem::copy_file(NEARBOX_AGENT_BINARY, dir / "nearbox-agent");
  }
  // All agents of the test's directory end, and are seen to have ended.
  void TearDown() override {
    for (const auto& state_dir : {dir / "run/nearbox-agent", dir / "state"}) {
      std::error_code none;
      for (const auto& file : std::filesystem::directory_iterator(state_dir, none)) {
        if (file.path().extension() != ".json") continue;
        const auto state = parse_state(test::read_file(file.path().string()));
        if (!state) continue;
        ::kill(state->pid, SIGTERM);
        EXPECT_TRUE(test::eventually([&] { return ::kill(state->pid, 0) != 0; })) << "does not end";
      }
    }
  }
  wire::Op create(std::uint64_t id, std::uint32_t root, const std::string& path) {
    wire::Op op;
    op.op_id = id;
    op.kind = wire::OpKind::kCreate;
    op.root = root;
    op.path = path;
    op.mode = 0640;
    op.uid = op.gid = wire::kOwnerUser;
    return op;
  }
  test::TempDir dir;
  Where where;
};

TEST_F(StaticAgent, LivesInAnEmptyRootWithOnlyProc) {
  Client client(where, {"--linger", "5"}, 1);
  const auto root = client.call<wire::RootReply>(Method::kRootOpen, wire::RootOpen{"/", false});
  EXPECT_EQ(client.last_error(), 0);
  EXPECT_EQ(root.path, "/");
  const auto stat =
      client.call<wire::StatManyReply>(Method::kStatMany, wire::StatMany{root.root, {"nearbox-agent"}});
  ASSERT_EQ(stat.results.size(), 1U);
  EXPECT_EQ(stat.results[0].attr.size, std::filesystem::file_size(dir / "nearbox-agent"));
  client.note(Method::kApply, wire::encode(wire::Apply{{create(1, root.root, "made")}}));
  EXPECT_FALSE(client.events({client.welcome().instance, 0}).empty());
  EXPECT_TRUE(std::filesystem::exists(dir / "made"));
}

TEST_F(StaticAgent, LivesInAMuslRootAndOutlivesItsRelay) {
  for (const auto* path : {"bin", "etc", "home", "tmp", "lib"})
    ASSERT_EQ(::mkdir((dir / path).c_str(), 0755), 0);
  if (std::filesystem::exists("/bin/busybox"))
    std::filesystem::copy_file("/bin/busybox", dir / "bin/busybox");
  if (std::filesystem::exists("/lib/ld-musl-x86_64.so.1")) {
    std::filesystem::copy_file("/lib/ld-musl-x86_64.so.1", dir / "lib/ld-musl-x86_64.so.1");
  }
  ASSERT_EQ(::mkdir((dir / "home/user").c_str(), 0755), 0);
  test::write_file(dir / "etc/passwd",
                   "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1001::/home/user:/bin/sh\n");
  std::uint64_t instance = 0;
  std::uint32_t number = 0;
  {
    Client client(where, {"--linger", "30"}, 7);
    EXPECT_FALSE(client.welcome().resumed);
    EXPECT_TRUE(client.welcome().features & wire::kFeatureRoot);
    instance = client.welcome().instance;
    const auto root = client.call<wire::RootReply>(Method::kRootOpen, wire::RootOpen{"~", false});
    EXPECT_EQ(root.path, "/home/user");
    number = root.root;
    wire::Apply batch;
    for (std::uint64_t i = 1; i <= 200; ++i) batch.ops.push_back(create(i, number, "f" + std::to_string(i)));
    client.note(Method::kApply, wire::encode(batch));
    EXPECT_FALSE(client.events({instance, 0}).empty());
    client.kill();
  }
  Client again(where, {"--linger", "30"}, 7);
  EXPECT_EQ(again.welcome().instance, instance);
  EXPECT_TRUE(again.welcome().resumed);
  again.note(Method::kApply, wire::encode(wire::Apply{{create(201, number, "last")}}));
  EXPECT_TRUE(test::eventually([&] { return std::filesystem::exists(dir / "home/user/last"); }));
  struct stat st {};
  ASSERT_TRUE(test::eventually([&] { return ::stat((dir / "home/user/f200").c_str(), &st) == 0; }));
  EXPECT_EQ(st.st_uid, 1000U);
  EXPECT_EQ(st.st_gid, 1001U);
  EXPECT_EQ(st.st_mode & 07777, 0640U);
}

TEST_F(StaticAgent, BuildsRunSideBySide) {
  std::filesystem::copy_file(NEARBOX_AGENT_BINARY, dir / "other");
  std::ofstream(dir / "other", std::ios::app | std::ios::binary) << "x";  // another content hash
  auto second = where;
  second.program = "/other";
  Client a(where, {"--linger", "5"}, 1);
  Client b(second, {"--linger", "5"}, 1);
  EXPECT_NE(a.welcome().instance, b.welcome().instance);
  EXPECT_NE(a.welcome().build, b.welcome().build);
  a.call<wire::RootReply>(Method::kRootOpen, wire::RootOpen{"/", false});
  EXPECT_EQ(a.last_error(), 0);
  b.call<wire::RootReply>(Method::kRootOpen, wire::RootOpen{"/", false});
  EXPECT_EQ(b.last_error(), 0);
}

TEST_F(StaticAgent, ServesAnOrdinaryUser) {
  ASSERT_EQ(::mkdir((dir / "work").c_str(), 0755), 0);
  ASSERT_EQ(::mkdir((dir / "state").c_str(), 0700), 0);
  ASSERT_EQ(::chown((dir / "work").c_str(), 65534, 65534), 0);
  ASSERT_EQ(::chown((dir / "state").c_str(), 65534, 65534), 0);
  where.uid = 65534;
  Client client(where, {"--linger", "5", "--state-dir", "/state"}, 1);
  EXPECT_FALSE(client.welcome().features & wire::kFeatureRoot);
  const auto root = client.call<wire::RootReply>(Method::kRootOpen, wire::RootOpen{"/work", false});
  client.note(Method::kApply, wire::encode(wire::Apply{{create(1, root.root, "f")}}));
  EXPECT_FALSE(client.events({client.welcome().instance, 0}).empty());
  struct stat st {};
  ASSERT_EQ(::stat((dir / "work/f").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 65534U);
}

TEST_F(StaticAgent, EndsAfterItsLastClient) {
  std::int32_t pid = 0;
  {
    Client client(where, {"--linger", "0"}, 1);
    for (const auto& file : std::filesystem::directory_iterator(dir / "run/nearbox-agent")) {
      if (file.path().extension() == ".json") pid = parse_state(test::read_file(file.path().string()))->pid;
    }
    ASSERT_GT(pid, 0);
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_TRUE(test::eventually([&] { return ::kill(pid, 0) != 0; }));
}

}  // namespace
}  // namespace nearbox::agent
