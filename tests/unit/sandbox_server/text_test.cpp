// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/text.h"

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

// The vectors of the reference: the first one is what the official SDK makes.
TEST(FileSignature, Vectors) {
  EXPECT_EQ(file_signature("a b.txt", "write", "", "tok_secret", std::nullopt),
            "v1_H8INHYmI97bTX8pTdaU0bdsesNKXdhDaTtavS2WI4gI");
  EXPECT_EQ(file_signature("/home/user/x.txt", "read", "user", "tok_secret", 1800000000),
            "v1_0AbA9bDa+X7nWbRHMoLUo/jr60PyfUG5MrXPIJ08RwY");
}

TEST(PercentDecode, EscapesAndPlus) {
  EXPECT_EQ(percent_decode("a%20b+c%2", true), "a b c%2");
  EXPECT_EQ(percent_decode("a+b%zz%41", false), "a+b%zzA");
  EXPECT_EQ(percent_decode("%00", false), std::string(1, '\0'));
}

TEST(ParseQuery, FirstValueCounts) {
  const auto query = parse_query("path=a%2Fb&x&path=c&=e&y=1=2");
  EXPECT_EQ(query.at("path"), "a/b");
  EXPECT_EQ(query.at("x"), "");
  EXPECT_EQ(query.at("y"), "1=2");
  EXPECT_TRUE(parse_query("").empty());
}

TEST(BasicAuth, Forms) {
  EXPECT_EQ(parse_basic_auth("Basic cm9vdDo=")->first, "root");
  EXPECT_EQ(parse_basic_auth("basic dXNlcjpwdw==")->second, "pw");
  EXPECT_FALSE(parse_basic_auth("Bearer abc"));
  EXPECT_FALSE(parse_basic_auth("Basic !!!"));
  EXPECT_FALSE(parse_basic_auth("Basic cm9vdA=="));  // no colon
}

TEST(Base64, RoundTripAndRefusal) {
  const std::string bytes("\0\xff\x10 abc", 7);
  EXPECT_EQ(base64_decode(base64_encode(bytes)), bytes);
  EXPECT_EQ(base64_encode(""), "");
  EXPECT_FALSE(base64_decode("abc"));
  EXPECT_FALSE(base64_decode("a*bc"));
}

TEST(Utf8, ValidAndInvalid) {
  EXPECT_TRUE(valid_utf8("abc \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"));
  for (const char* bad : {"\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\x80"}) {
    EXPECT_FALSE(valid_utf8(bad)) << bad;
  }
}

TEST(ParseNumber, OnlyDecimalDigits) {
  EXPECT_EQ(parse_number("0"), 0U);
  EXPECT_EQ(parse_number("18446744073709551615"), 18446744073709551615U);
  for (const char* bad : {"", "-1", "+1", " 1", "1 ", "18446744073709551616", "1a"})
    EXPECT_FALSE(parse_number(bad)) << bad;
}

TEST(RouteOf, HostNames) {
  const auto route = route_of("8080-iabc123.sandbox.test:3000", std::nullopt, std::nullopt);
  ASSERT_TRUE(route.route);
  EXPECT_EQ(route.route->port, 8080);
  EXPECT_EQ(route.route->sandbox_id, "iabc123");
  EXPECT_EQ(route_of("80-iabc-6532622b.localhost", std::nullopt, std::nullopt).route->sandbox_id, "iabc");
  EXPECT_FALSE(route_of("80-iabc", std::nullopt, std::nullopt).route);
  EXPECT_FALSE(route_of("my-host.lan", std::nullopt, std::nullopt).route);
  EXPECT_FALSE(route_of("127.0.0.1:3000", std::nullopt, std::nullopt).route);
}

TEST(RouteOf, Headers) {
  const auto route = route_of("127.0.0.1:3000", "iabc-6532622b", "49983");
  ASSERT_TRUE(route.route);
  EXPECT_EQ(route.route->sandbox_id, "iabc");
  EXPECT_EQ(route.route->port, 49983);
  EXPECT_FALSE(route_of("[::1]:3000", "iabc", std::nullopt).error.empty());
  EXPECT_FALSE(route_of("localhost", std::nullopt, "80").error.empty());
  for (const char* port : {"0", "65536", "x", "-1", ""})
    EXPECT_FALSE(route_of("localhost", "iabc", port).error.empty()) << port;
  for (const char* id : {"", "I", "a/b", "../x"})
    EXPECT_FALSE(route_of("localhost", id, "80").error.empty()) << id;
}

TEST(ParseRange, Forms) {
  using Kind = ByteRange::Kind;
  const auto expect = [](const char* text, std::uint64_t size, Kind kind, std::uint64_t first,
                         std::uint64_t length) {
    const auto range = parse_range(text, size);
    EXPECT_EQ(range.kind, kind) << text;
    EXPECT_EQ(range.first, first) << text;
    EXPECT_EQ(range.length, length) << text;
  };
  expect("bytes=0-0", 10, Kind::kRange, 0, 1);
  expect("bytes=2-", 10, Kind::kRange, 2, 8);
  expect("bytes=2-99", 10, Kind::kRange, 2, 8);
  expect("bytes=-3", 10, Kind::kRange, 7, 3);
  expect("bytes=-99", 10, Kind::kRange, 0, 10);
  expect("bytes=10-", 10, Kind::kUnsatisfiable, 0, 0);
  expect("bytes=-0", 10, Kind::kUnsatisfiable, 0, 0);
  expect("bytes=0-", 0, Kind::kUnsatisfiable, 0, 0);
  for (const char* none : {"bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=", ""})
    expect(none, 10, Kind::kNone, 0, 0);
}

TEST(Dates, HttpBothWays) {
  EXPECT_EQ(http_date(784111777), "Sun, 06 Nov 1994 08:49:37 GMT");
  EXPECT_EQ(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), 784111777);
  EXPECT_FALSE(parse_http_date("yesterday"));
}

TEST(Dates, Rfc3339) {
  EXPECT_EQ(rfc3339(1767323045, 678901000), "2026-01-02T03:04:05.678901Z");
  EXPECT_EQ(rfc3339(1767323045, 0), "2026-01-02T03:04:05Z");
  EXPECT_EQ(rfc3339(1767323045, 500000000), "2026-01-02T03:04:05.500Z");
  EXPECT_EQ(parse_rfc3339("2026-01-02T03:04:05.678Z"), 1767323045678);
  EXPECT_EQ(parse_rfc3339("2026-01-02T04:04:05+01:00"), 1767323045000);
  EXPECT_FALSE(parse_rfc3339("2026-01-02"));
}

}  // namespace
}  // namespace nearbox::sandbox_server
