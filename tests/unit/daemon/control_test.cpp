// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/control.h"

#include <cstring>
#include <sys/socket.h>

#include <gtest/gtest.h>

#include "client/api/error_code.h"
#include "tools/daemon/control_errors.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;

Deadline soon() { return std::chrono::steady_clock::now() + 5s; }

struct Pair {
  Pair() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
    a = std::make_unique<ControlConnection>(base::UniqueFd(fds[0]));
    b = std::make_unique<ControlConnection>(base::UniqueFd(fds[1]));
  }
  std::unique_ptr<ControlConnection> a, b;
};

TEST(Control, FramesKeepTheirBytes) {
  const Pair pair;
  const std::string bytes("a\0b\xff", 4);
  ASSERT_TRUE(pair.a->write(ControlType::kStdout, bytes, soon()));
  auto frame = pair.b->read(soon());
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->type, ControlType::kStdout);
  EXPECT_EQ(frame->payload, bytes);
}

TEST(Control, RefusesAFrameThatIsTooLarge) {
  const Pair pair;
  const char head[5] = {'\xff', '\xff', '\xff', '\x7f', 'J'};
  ASSERT_EQ(::send(pair.a->fd(), head, sizeof head, 0), 5);
  auto frame = pair.b->read(soon());
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error().as_errno(), EPROTO);
}

TEST(Control, DeadlineAndEnd) {
  Pair pair;
  auto late = pair.b->read(std::chrono::steady_clock::now());
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().as_errno(), ETIMEDOUT);
  pair.a.reset();
  auto end = pair.b->read(soon());
  ASSERT_FALSE(end);
  EXPECT_EQ(end.error().as_errno(), ECONNRESET);
}

TEST(Control, ErrorsKeepCodeTextAndExit) {
  const auto ours = api::fill_error(api::ErrorCode::kSandboxNotFound, {{"ID", "i123"}});
  const auto back = error_from(error_object(ours));
  EXPECT_EQ(api::error_text(back), api::error_text(ours));
  EXPECT_EQ(api::exit_code(back), api::exit_code(ours));
  const auto plain = base::errno_error(ENOSPC, "write x");
  const auto plain_back = error_from(error_object(plain));
  EXPECT_EQ(plain_back.as_errno(), ENOSPC);
  EXPECT_EQ(api::error_text(plain_back), api::error_text(plain));
}

TEST(Control, ForeignErrorObjects) {
  for (const char* text : {"1", "{}", "{\"error\":3}", "{\"code\":99999}", "{\"code\":-1,\"errno\":\"x\"}"}) {
    auto value = parse_json(text);
    ASSERT_TRUE(value) << text;
    EXPECT_NE(error_from(*value).as_errno(), 0) << text;
  }
}

}  // namespace
}  // namespace nearbox::daemon
