// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/envelope.h"

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

TEST(Envelope, ReferenceBytes) {
  EXPECT_EQ(encode_envelope(0, R"({"process":{"pid":42}})"),
            std::string("\0\0\0\0\x16", 5) + R"({"process":{"pid":42}})");
  EXPECT_EQ(encode_envelope(kFlagEnd, "{}"), std::string("\x02\0\0\0\x02{}", 7));
}

TEST(Envelope, ArrivesInAnyPieces) {
  const auto bytes =
      encode_envelope(0, "first") + encode_envelope(kFlagEnd, "") + encode_envelope(1, "third");
  std::string buffer;
  std::vector<Envelope> got;
  for (const char c : bytes) {
    buffer.push_back(c);
    while (true) {
      auto taken = take_envelope(buffer);
      ASSERT_TRUE(taken);
      if (!*taken) break;
      got.push_back(**taken);
    }
  }
  ASSERT_EQ(got.size(), 3U);
  EXPECT_EQ(got[0].message, "first");
  EXPECT_EQ(got[1].flags, kFlagEnd);
  EXPECT_EQ(got[2].message, "third");
  EXPECT_TRUE(buffer.empty());
}

TEST(Envelope, TooLongIsRefusedBeforeItArrives) {
  std::string buffer("\0\xff\xff\xff\xff", 5);
  const auto taken = take_envelope(buffer);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().as_errno(), EMSGSIZE);
}

TEST(ConnectCodes, Status) {
  EXPECT_EQ(http_status_of("not_found"), 404);
  EXPECT_EQ(http_status_of("unauthenticated"), 401);
  EXPECT_EQ(http_status_of("resource_exhausted"), 429);
  EXPECT_EQ(http_status_of("something else"), 500);
}

}  // namespace
}  // namespace nearbox::sandbox_server
