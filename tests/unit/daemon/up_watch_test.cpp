// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/up_watch.h"

#include <gtest/gtest.h>

#include "client/api/error_code.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;

UpWatch::Deadline soon() { return std::chrono::steady_clock::now() + 5s; }
UpWatch::Deadline now() { return std::chrono::steady_clock::now(); }

base::Error gone() { return api::make_error(api::ErrorCode::kSandboxNotFound, "Sandbox x not found"); }

TEST(UpWatch, FirstFailureAfterTheCallEndsTheWait) {
  UpWatch watch;
  watch.dial_failed(base::errno_error(ECONNREFUSED, "an earlier attempt"), false);
  const auto result = watch.wait(soon(), [&] { watch.dial_failed(gone(), false); });
  ASSERT_FALSE(result);
  EXPECT_TRUE(api::is(result.error(), api::ErrorCode::kSandboxNotFound));
}

TEST(UpWatch, ADownNoticeBeforeTheFirstConnectionHidesNoCause) {
  UpWatch watch;
  const auto result = watch.wait(soon(), [&] {
    watch.dial_failed(gone(), true);
    watch.on_down(base::errno_error(ENOTCONN, "not connected yet"));
  });
  ASSERT_FALSE(result);
  EXPECT_TRUE(api::is(result.error(), api::ErrorCode::kSandboxNotFound));
}

TEST(UpWatch, ALinkThatWasUpIsWaitedFor) {
  UpWatch watch;
  watch.on_up({}, false);
  watch.on_down(base::errno_error(ECONNRESET, "cut"));
  const auto result = watch.wait(soon(), [&] {
    watch.dial_failed(base::errno_error(ECONNREFUSED, "not yet"), false);
    watch.on_up({}, true);
  });
  EXPECT_TRUE(result);
}

TEST(UpWatch, FinalErrorsEndTheWaitAlsoLater) {
  UpWatch watch;
  watch.on_up({}, false);
  watch.on_down(base::errno_error(ECONNRESET, "cut"));
  const auto result = watch.wait(soon(), [&] { watch.dial_failed(gone(), true); });
  ASSERT_FALSE(result);
  EXPECT_TRUE(api::is(result.error(), api::ErrorCode::kSandboxNotFound));
}

TEST(UpWatch, DeadlineAndClose) {
  UpWatch watch;
  const auto late = watch.wait(now(), [] {});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().as_errno(), ETIMEDOUT);
  watch.close();
  const auto closed = watch.wait(soon(), [] {});
  ASSERT_FALSE(closed);
  EXPECT_EQ(closed.error().as_errno(), ESHUTDOWN);
}

}  // namespace
}  // namespace nearbox::daemon
