// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/service.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <gtest/gtest.h>

#include "client/channel/fd_carrier.h"
#include "client/channel/frame.h"
#include "client/channel/frame_queue.h"
#include "client/channel/handshake.h"
#include "client/wire/changes.h"
#include "tests/unit/agent/agent_test_util.h"
#include "tests/unit/agent/hung_fs.h"
#include "tools/agent/agent.h"
#include "tools/agent/listener.h"

namespace nearbox::agent {
namespace {

using test::FakeResponder;
using wire::Method;
using Clock = std::chrono::steady_clock;
constexpr std::uint64_t kInstance = 77;

class ServiceTest : public ::testing::Test {
 protected:
  ServiceTest() {
    wire::RootOpen open{dir.path, false};
    auto r = call(Method::kRootOpen, open);
    EXPECT_TRUE(r->wait());
    root = r->reply<wire::RootReply>().root;
  }
  template <class M>
  std::shared_ptr<FakeResponder> call(Method method, const M& message) {
    auto responder = std::make_shared<FakeResponder>(++next_call);
    service.on_call(method, wire::encode(message), responder);
    return responder;
  }
  std::shared_ptr<FakeResponder> read(const std::string& path, std::uint64_t length,
                                      std::uint64_t offset = 0) {
    wire::Read read;
    read.at.root = root;
    read.at.path = path;
    read.offset = offset;
    read.length = length;
    return call(Method::kRead, read);
  }
  std::vector<wire::OpDone> dones(std::size_t count) {
    auto r = call(Method::kSubscribe, wire::Subscribe{kInstance, 0});
    std::vector<wire::OpDone> all;
    EXPECT_TRUE(test::eventually([&] {
      all.clear();
      const auto data = r->data();
      wire::Reader reader(data);
      while (!reader.done()) {
        const auto event = wire::decode<wire::Event>(reader.view(wire::kMaxEventBytes));
        if (!event) break;
        EXPECT_EQ(event->seq, all.size() + 1);
        all.push_back(wire::decode<wire::OpDone>(event->body).value_or(wire::OpDone{}));
      }
      return all.size() >= count;
    }));
    cancel(*r);
    EXPECT_TRUE(r->wait());
    return all;
  }
  // As the connection does.
  void cancel(FakeResponder& responder) {
    responder.cancel();
    service.on_cancel(responder.call_id());
  }

  test::TempDir dir;
  base::Logger log{2, base::LogLevel::kError};
  base::Timers timers;
  Watcher watcher{log};
  Identity who = test::self();
  SessionPtr session = std::make_shared<Session>(wire::SessionId{}, kInstance, who, ProcTable::Options{},
                                                 timers, watcher, log);
  Service service{session, who, log};
  std::uint32_t root = 0;
  std::uint32_t next_call = 0;
};

// The whole way: an operation has a version, another client is told of it, the barrier says how far.
TEST_F(ServiceTest, TellsAnotherSessionAtItsBarrier) {
  auto second = std::make_shared<Session>(wire::SessionId{}, kInstance, who, ProcTable::Options{}, timers,
                                          watcher, log);
  Service theirs{second, who, log};
  const auto ask = [&](Method method, const auto& message) {
    auto responder = std::make_shared<FakeResponder>(++next_call);
    theirs.on_call(method, wire::encode(message), responder);
    EXPECT_TRUE(responder->wait());
    return responder;
  };
  const auto their_root =
      ask(Method::kRootOpen, wire::RootOpen{dir.path, false})->reply<wire::RootReply>().root;
  EXPECT_EQ(ask(Method::kBarrier, wire::Barrier{their_root})->error(), EOPNOTSUPP);
  auto watch = ask(Method::kWatch, wire::Watch{their_root});
  ASSERT_EQ(watch->error(), 0);
  ASSERT_NE(watch->reply<wire::WatchReply>().kind, wire::WatchKind::kNone);

  wire::Op op;
  op.op_id = 1;
  op.kind = wire::OpKind::kCreate;
  op.root = root;
  op.path = "made";
  op.mode = 0644;
  op.uid = op.gid = wire::kOwnerUser;
  service.on_note(Method::kApply, wire::encode(wire::Apply{{op}}));
  const auto made = dones(1);
  ASSERT_EQ(made[0].error, 0);
  EXPECT_GT(made[0].attr.version, 0U);
  auto barrier = ask(Method::kBarrier, wire::Barrier{their_root});
  ASSERT_EQ(barrier->error(), 0);
  const auto seq = barrier->reply<wire::BarrierReply>().seq;
  EXPECT_GT(seq, 0U);
  bool told = false;
  std::uint64_t after = 0;
  wire::Bytes out;
  ASSERT_TRUE(second->events.take(after, 1 << 20, out, Clock::now()));
  EXPECT_EQ(after, seq);
  wire::Reader reader(out);
  while (!reader.done()) {
    const auto event = wire::decode<wire::Event>(reader.view(wire::kMaxEventBytes + 64));
    ASSERT_TRUE(event);
    const auto changed = wire::decode<wire::Changed>(event->body);
    ASSERT_TRUE(changed);
    for (const auto& state : changed->states) {
      if (state.name != "made") continue;
      told = true;
      EXPECT_GE(state.attr.version, made[0].attr.version);
    }
  }
  EXPECT_TRUE(told);
  EXPECT_EQ(ask(Method::kWatch, wire::Watch{99})->error(), ESTALE);
}

TEST_F(ServiceTest, ReadsRanges) {
  std::string text(700'000, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 26);
  test::write_file(dir / "f", text);
  auto r = read("f", wire::kMaxReadBytes);
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), 0);
  EXPECT_EQ(wire::as_text(r->data()), text);
  EXPECT_TRUE(r->reply<wire::ReadReply>().eof);
  EXPECT_EQ(r->reply<wire::ReadReply>().attr.size, text.size());
  r = read("f", 10, 5);
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(wire::as_text(r->data()), "fghijklmno");
  EXPECT_FALSE(r->reply<wire::ReadReply>().eof);
  r = read("f", 10, 700'000);
  ASSERT_TRUE(r->wait());
  EXPECT_TRUE(r->data().empty());
  EXPECT_TRUE(r->reply<wire::ReadReply>().eof);
  r = read("f", wire::kMaxReadBytes + 1);
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), EINVAL);
  for (const auto& [path, error] : {std::pair{"", EISDIR}, {"none", ENOENT}, {"../x", EINVAL}}) {
    r = read(path, 1);
    ASSERT_TRUE(r->wait());
    EXPECT_EQ(r->error(), error) << path;
  }
  wire::Read stale;
  stale.at = {root, "f", {1, 2}, 0};
  stale.length = 1;
  r = call(Method::kRead, stale);
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), ESTALE);
}

TEST_F(ServiceTest, ReadManyInOrderWithinLimits) {
  wire::ReadMany request;
  request.root = root;
  request.max_file = 1000;
  request.max_total = 10'000;
  for (int i = 0; i < 40; ++i) {
    const auto name = "f" + std::to_string(i);
    if (i != 7)
      test::write_file(dir / name, std::string(static_cast<std::size_t>(i == 9 ? 1001 : i * 10), 'x'));
    request.items.push_back({name, i == 8 ? wire::NodeId{1, 1} : wire::NodeId{}});
  }
  auto r = call(Method::kReadMany, request);
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), 0);
  const auto data = r->data();
  wire::Reader reader(data);
  for (std::uint32_t i = 0; i < 40; ++i) {
    const auto record = wire::decode<wire::ReadManyRecord>(reader.view(wire::kMaxMessage));
    ASSERT_TRUE(record);
    EXPECT_EQ(record->index, i);
    EXPECT_EQ(record->error, i == 7 ? ENOENT : i == 8 ? ESTALE : i == 9 ? EFBIG : 0);
    if (record->error == 0) {
      EXPECT_EQ(record->data.size(), i * 10);
    }
  }
  EXPECT_TRUE(reader.done());
  request.max_total = 25;
  r = call(Method::kReadMany, request);
  ASSERT_TRUE(r->wait());
}

TEST_F(ServiceTest, StatsLinksXattrsAndSpace) {
  test::write_file(dir / "f", "x");
  ASSERT_EQ(::symlink("target", (dir / "l").c_str()), 0);
  auto r = call(Method::kStatMany, wire::StatMany{root, {"f", "l", "none", "", "a/../b"}});
  ASSERT_TRUE(r->wait());
  const auto stats = r->reply<wire::StatManyReply>().results;
  ASSERT_EQ(stats.size(), 5U);
  EXPECT_EQ(stats[0].attr.size, 1U);
  EXPECT_EQ(stats[1].target, "target");
  EXPECT_EQ(stats[2].error, ENOENT);
  EXPECT_TRUE(S_ISDIR(stats[3].attr.mode));
  EXPECT_EQ(stats[4].error, EINVAL);
  r = call(Method::kReadLink, wire::PathCall{root, "l", {}, 0});
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(wire::as_text(r->reply<wire::BytesReply>().data), "target");
  r = call(Method::kReadLink, wire::PathCall{root, "f", {}, 0});
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), EINVAL);
  r = call(Method::kStatFs, wire::PathCall{root, "", {}, 0});
  ASSERT_TRUE(r->wait());
  EXPECT_GT(r->reply<wire::StatFsReply>().blocks, 0U);
  r = call(Method::kGetXattr, wire::XattrCall{{root, "f", {}, 0}, "security.selinux"});
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), ENODATA);
  r = call(Method::kListXattr, wire::XattrCall{{root, "l", {}, 0}, ""});
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), 0);
  auto info = std::make_shared<FakeResponder>(1);
  service.on_call(Method::kInfo, {}, info);
  EXPECT_EQ(info->reply<wire::InfoReply>().agent_uid, ::geteuid());
}

TEST_F(ServiceTest, AppliesOnceAndTellsEvents) {
  wire::Apply batch;
  for (std::uint64_t i = 1; i <= 100; ++i) {
    wire::Op op;
    op.op_id = i;
    op.kind = wire::OpKind::kCreate;
    op.root = root;
    op.path = "f" + std::to_string(i % 50);
    op.flags = O_EXCL;
    op.keys = {{i % 50, true}};
    op.uid = op.gid = wire::kOwnerUser;
    batch.ops.push_back(op);
  }
  service.on_note(Method::kApply, wire::encode(batch));
  service.on_note(Method::kApply, wire::encode(batch));  // after a reconnect
  const auto all = dones(100);
  ASSERT_EQ(all.size(), 100U);
  for (const auto& done : all) EXPECT_EQ(done.error, done.op_id <= 50 ? 0 : EEXIST) << done.op_id;
  service.on_note(Method::kConfirm, wire::encode(wire::Confirm{60, 4242}));
  EXPECT_EQ(session->nonce(), 4242U);
  auto r = call(Method::kSubscribe, wire::Subscribe{kInstance, 10});
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), ESTALE) << "was confirmed";
  r = call(Method::kSubscribe, wire::Subscribe{kInstance + 1, 10});  // of another agent: what is kept
  ASSERT_TRUE(r->wait_bytes(1));
  cancel(*r);
  ASSERT_TRUE(r->wait());
}

TEST_F(ServiceTest, HeldReadsLeaveOthersAlone) {
  test::Faults faults;
  faults.set("agent.hold_read big*\n");
  ASSERT_TRUE(faults.reaches("agent.hold_read", "big1", true));
  test::write_file(dir / "big", std::string(100, 'b'));
  test::write_file(dir / "small", "s");
  std::vector<std::shared_ptr<FakeResponder>> held;
  for (int i = 0; i < 500; ++i) held.push_back(read("big", i % 2 == 0 ? 100 : 8 << 20));
  for (int i = 0; i < 20; ++i) {
    auto r = read("small", 1);
    ASSERT_TRUE(r->wait());
    EXPECT_EQ(r->error(), 0);
  }
  EXPECT_EQ(session->parking->size(), 500U);
  held[0]->cancel();
  ASSERT_TRUE(held[0]->wait());
  EXPECT_EQ(held[0]->error(), ECANCELED);
  faults.set("");
  for (std::size_t i = 1; i < held.size(); ++i) {
    ASSERT_TRUE(held[i]->wait());
    EXPECT_EQ(held[i]->data().size(), 100U);
  }
}

TEST_F(ServiceTest, StalledStreamsLeaveSmallReadsAlone) {
  test::write_file(dir / "big", std::string(2 << 20, 'b'));
  std::vector<std::shared_ptr<FakeResponder>> stalled;
  for (std::size_t i = 0; i < 2 * kStreamThreads; ++i) {
    auto responder = std::make_shared<FakeResponder>(++next_call);
    responder->stall(true);
    wire::Read call;
    call.at.root = root;
    call.at.path = "big";
    call.length = 2 << 20;
    service.on_call(Method::kRead, wire::encode(call), responder);
    stalled.push_back(responder);
  }
  auto r = read("big", 100);
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->data().size(), 100U);
  for (auto& responder : stalled) responder->stall(false);
  for (auto& responder : stalled) ASSERT_TRUE(responder->wait());
}

TEST_F(ServiceTest, AHungFileSystemLeavesTheOthersAlone) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may mount a file system that hangs";
  test::HungFs hung(dir / "hung");
  ASSERT_TRUE(hung.mounted()) << std::strerror(errno);
  test::write_file(dir / "f", "text");
  std::vector<std::shared_ptr<FakeResponder>> held;
  wire::Apply batch;
  for (std::size_t i = 0; i < 2 * kSmallThreads; ++i) {
    held.push_back(call(Method::kStatMany, wire::StatMany{root, {"f", "hung/x"}}));
    held.push_back(read("hung/x", 1));
    held.push_back(read("hung/x", 8 << 20));
    wire::Op op;
    op.op_id = i + 1;
    op.kind = wire::OpKind::kMkdir;
    op.root = root;
    op.path = "hung/" + std::to_string(i);
    op.keys = {{i + 1, true}};
    batch.ops.push_back(op);
  }
  const auto last = batch.ops.size() + 1;
  wire::Op op;
  op.op_id = last;
  op.kind = wire::OpKind::kMkdir;
  op.root = root;
  op.path = "made";
  op.keys = {{last, true}};
  batch.ops.push_back(op);
  service.on_note(Method::kApply, wire::encode(batch));
  auto stat = call(Method::kStatMany, wire::StatMany{root, {"f", "."}});
  EXPECT_TRUE(stat->wait());
  auto small = read("f", 4);
  EXPECT_TRUE(small->wait());
  EXPECT_EQ(wire::as_text(small->data()), "text");
  auto large = read("f", 8 << 20);
  EXPECT_TRUE(large->wait());
  const auto done = dones(1);
  ASSERT_EQ(done.size(), 1U);
  EXPECT_EQ(done[0].op_id, last);
  EXPECT_EQ(done[0].error, 0);
  for (auto& responder : held) EXPECT_FALSE(responder->ended());
  hung.release();
  for (auto& responder : held) EXPECT_TRUE(responder->wait());
}

TEST_F(ServiceTest, AConfirmThatComesLateTakesNothingBack) {
  service.on_note(Method::kConfirm, wire::encode(wire::Confirm{2, 200}));
  service.on_note(Method::kConfirm, wire::encode(wire::Confirm{1, 100}));
  EXPECT_EQ(session->nonce(), 200u);
  service.on_note(Method::kConfirm, wire::encode(wire::Confirm{2, 300}));
  EXPECT_EQ(session->nonce(), 300u);
}

TEST_F(ServiceTest, GarbageIsAnsweredOrDropped) {
  for (std::uint16_t method = 0; method < 40; ++method) {
    if (method == static_cast<std::uint16_t>(Method::kInfo)) continue;
    if (method == static_cast<std::uint16_t>(Method::kProcList)) continue;
    auto responder = std::make_shared<FakeResponder>(1);
    service.on_call(static_cast<Method>(method), wire::as_view("garbage"), responder);
    ASSERT_TRUE(responder->ended()) << method;
    EXPECT_TRUE(responder->error() == EPROTO || responder->error() == ENOSYS) << method;
  }
  service.on_note(Method::kConfirm, wire::as_view("garbage"));
  EXPECT_FALSE(session->poisoned());
  service.on_note(Method::kApply, wire::as_view("garbage"));
  EXPECT_TRUE(session->poisoned());
  auto r = read("x", 1);
  EXPECT_EQ(r->error(), ESTALE);
}

TEST_F(ServiceTest, TreeIsStreamedAndCounted) {
  for (int i = 0; i < 30; ++i) ASSERT_EQ(::mkdir((dir / std::to_string(i)).c_str(), 0755), 0);
  wire::Tree request;
  request.root = root;
  auto r = call(Method::kTree, request);
  service.on_note(Method::kTreeHurry, wire::encode(wire::TreeHurry{r->call_id(), "7"}));
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), 0);
  EXPECT_EQ(r->reply<wire::TreeReply>().entries, 30U);
  EXPECT_EQ(r->reply<wire::TreeReply>().directories, 31U);
  request.root = 9;
  r = call(Method::kTree, request);
  ASSERT_TRUE(r->wait());
  EXPECT_EQ(r->error(), ESTALE);
}

// ---- the agent behind a socket ---------------------------------------------------------------

struct Dialled {
  std::unique_ptr<channel::FdCarrier> client;
  std::jthread server;
};

class AgentTest : public ::testing::Test {
 protected:
  AgentTest() {
    options.token.fill(std::byte{9});
    options.who = test::self();
    options.session_grace = std::chrono::seconds(100);
    options.linger = std::chrono::seconds(200);
    agent = std::make_unique<Agent>(options, log);
  }
  Dialled dial() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    Dialled dialled;
    dialled.client = std::move(*channel::FdCarrier::from_socket(base::UniqueFd(ends[0])));
    dialled.server = std::jthread([this, fd = ends[1]] {
      auto carrier = std::move(*channel::FdCarrier::from_socket(base::UniqueFd(fd)));
      agent->serve(*carrier);
    });
    return dialled;
  }
  base::Result<wire::Welcome> greet(Dialled& dialled, std::uint8_t session, const wire::Token& token) {
    wire::Hello hello;
    hello.token = token;
    hello.session.fill(std::byte{session});
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    EXPECT_TRUE(channel::send_hello(*dialled.client, hello, deadline).ok());
    return channel::read_welcome(*dialled.client, deadline);
  }
  base::Logger log{2, base::LogLevel::kOff};
  Agent::Options options;
  std::unique_ptr<Agent> agent;
};

TEST_F(AgentTest, WelcomesResumesAndRefuses) {
  auto first = dial();
  auto welcome = greet(first, 1, options.token);
  ASSERT_TRUE(welcome.ok()) << welcome.error().message();
  EXPECT_FALSE(welcome->resumed);
  EXPECT_EQ(welcome->instance, agent->instance());
  EXPECT_EQ(welcome->session_grace_s, 100U);
  auto second = dial();
  EXPECT_TRUE(greet(second, 1, options.token)->resumed);
  auto wrong = dial();
  auto token = options.token;
  token.back() = std::byte{0};
  EXPECT_EQ(greet(wrong, 1, token).error().as_errno(), EACCES);
  EXPECT_EQ(agent->sessions(), 1U);
  first.client.reset();
  second.client.reset();
  first.server.join();
  second.server.join();
  EXPECT_FALSE(agent->tick(Clock::now()));
  EXPECT_FALSE(agent->tick(Clock::now() + std::chrono::seconds(99)));
  EXPECT_EQ(agent->sessions(), 1U);
  EXPECT_FALSE(agent->tick(Clock::now() + std::chrono::seconds(101)));
  EXPECT_TRUE(test::eventually([&] { return agent->sessions() == 0; }));
  EXPECT_TRUE(agent->tick(Clock::now() + std::chrono::seconds(201)));
}

TEST_F(AgentTest, LingeringBeginsWhenTheLastConnectionEnds) {
  auto first = dial();
  ASSERT_TRUE(greet(first, 1, options.token).ok());
  EXPECT_FALSE(agent->tick(Clock::now() - std::chrono::hours(1)));  // the last one while somebody was there
  first.client.reset();
  first.server.join();
  EXPECT_FALSE(agent->tick(Clock::now()));
  EXPECT_TRUE(agent->tick(Clock::now() + std::chrono::seconds(201)) ||
              agent->tick(Clock::now() + std::chrono::seconds(402)));
}

TEST_F(AgentTest, ASessionThatIsOverIsNotResumed) {
  auto first = dial();
  ASSERT_TRUE(greet(first, 1, options.token).ok());
  channel::FrameQueue queue;
  queue.push(channel::FrameQueue::note_stream(0), wire::FrameType::kNote,
             static_cast<std::uint16_t>(wire::Method::kSessionEnd), 0, {});
  wire::Bytes frames;
  ASSERT_TRUE(queue.next(frames));
  ASSERT_TRUE(first.client->write(frames, Clock::now() + std::chrono::seconds(20)).ok());
  const auto end = Clock::now() + std::chrono::seconds(20);
  while (agent->sessions() > 0 && Clock::now() < end) (void)agent->tick(Clock::now());
  EXPECT_EQ(agent->sessions(), 0U);
  first.server.join();  // the connection went with it
  auto second = dial();
  auto welcome = greet(second, 1, options.token);
  ASSERT_TRUE(welcome.ok());
  EXPECT_FALSE(welcome->resumed);
  second.client.reset();
}

TEST_F(AgentTest, ASessionThatHangsOnAFileSystemHoldsUpNobody) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may mount a file system that hangs";
  test::TempDir dir;
  test::HungFs hung(dir / "hung");
  ASSERT_TRUE(hung.mounted()) << std::strerror(errno);
  auto first = dial();
  ASSERT_TRUE(greet(first, 1, options.token).ok());
  const auto soon = Clock::now() + std::chrono::seconds(20);
  channel::FrameQueue queue;
  for (std::uint32_t id = 1; id <= 2; ++id) {
    auto bytes = wire::encode(wire::CallHead{});
    const auto call = wire::encode(wire::RootOpen{id == 1 ? dir / "hung/x" : dir.path, false});
    bytes.insert(bytes.end(), call.begin(), call.end());
    queue.push(channel::FrameQueue::call_stream(id), wire::FrameType::kCall,
               static_cast<std::uint16_t>(wire::Method::kRootOpen), id, std::move(bytes));
  }
  wire::Bytes frames;
  while (queue.next(frames)) {
  }
  ASSERT_TRUE(first.client->write(frames, soon).ok());
  // Jobs begin in order: when the second is answered, the first hangs.
  channel::FrameReader reader(*first.client);
  while (true) {
    const auto frame = reader.next(soon);
    ASSERT_TRUE(frame.ok() && *frame);
    if ((*frame)->head.type == wire::FrameType::kEnd && (*frame)->head.call_id == 2) break;
  }
  first.client.reset();
  first.server.join();
  // None of these waits.
  const auto late = Clock::now() + std::chrono::seconds(101);
  (void)agent->tick(late);
  EXPECT_TRUE(test::eventually([&] { return agent->ending() == 1; }));
  (void)agent->tick(late);
  EXPECT_EQ(agent->sessions(), 0U);
  auto again = dial();
  const auto welcome = greet(again, 1, options.token);
  ASSERT_TRUE(welcome.ok());
  EXPECT_FALSE(welcome->resumed);
  agent->stop();
  EXPECT_FALSE(agent->end_sessions(Clock::now() + std::chrono::milliseconds(20)));
  hung.release();
  EXPECT_TRUE(agent->end_sessions(soon));
  EXPECT_EQ(agent->ending(), 0U);
}

TEST_F(AgentTest, SilentStrangersKeepNobodyOut) {
  auto listener = Listener::tcp(0, log);
  ASSERT_TRUE(listener.ok()) << listener.error().message();
  const auto plain = [](base::UniqueFd socket,
                        channel::Deadline) -> base::Result<std::unique_ptr<channel::Carrier>> {
    auto carrier = channel::FdCarrier::from_socket(std::move(socket));
    if (!carrier) return std::move(carrier).error();
    return std::unique_ptr<channel::Carrier>(std::move(*carrier));
  };
  ASSERT_TRUE((*listener)->start(*agent, plain).ok());
  struct sockaddr_in address {};
  address.sin_family = AF_INET;
  address.sin_port = htons((*listener)->port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const auto connect = [&] {
    base::UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    return socket;
  };
  std::vector<base::UniqueFd> silent;
  for (std::size_t i = 0; i < kMaxStrangers; ++i) silent.push_back(connect());
  Dialled owner;
  owner.client = std::move(*channel::FdCarrier::from_socket(connect()));
  const auto welcome = greet(owner, 1, options.token);
  EXPECT_TRUE(welcome.ok()) << welcome.error().message();
  (*listener)->stop();
}

TEST_F(AgentTest, BoundsItsSessions) {
  std::vector<Dialled> all;
  for (std::size_t i = 0; i < kMaxSessions; ++i) {
    all.push_back(dial());
    ASSERT_TRUE(greet(all.back(), static_cast<std::uint8_t>(i + 1), options.token).ok()) << i;
  }
  auto one_more = dial();
  EXPECT_EQ(greet(one_more, 200, options.token).error().as_errno(), EBUSY);
  agent->stop();
  for (auto& dialled : all) dialled.server.join();
  auto late = dial();
  EXPECT_FALSE(greet(late, 1, options.token).ok());
}

}  // namespace
}  // namespace nearbox::agent
