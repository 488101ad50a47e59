// SPDX-License-Identifier: Apache-2.0
#include "client/http/connect_stream.h"

#include <random>

#include <gtest/gtest.h>

namespace nearbox::http {
namespace {

using namespace std::string_literals;

TEST(Envelope, BytesAsTheReferenceHasThem) {
  const std::string request = make_envelope(R"({"process":{"pid":42}})");
  EXPECT_EQ(request.substr(0, 5), "\0\0\0\0\x16"s);
  Envelope out;
  EXPECT_EQ(*parse_envelope(request, out), request.size());
  EXPECT_EQ(out.payload, R"({"process":{"pid":42}})");
  EXPECT_FALSE(out.is_end());
  EXPECT_EQ(*parse_envelope("\2\0\0\0\2{}"s, out), 7u);
  EXPECT_TRUE(out.is_end());
}

TEST(Envelope, EveryPrefixAsksForMore) {
  const std::string whole = make_envelope("{\"a\":1}");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    Envelope out;
    EXPECT_EQ(*parse_envelope(std::string_view(whole).substr(0, n), out), 0u) << n;
  }
}

TEST(Envelope, RefusesHugeCompressedAndUnknown) {
  Envelope out;
  EXPECT_EQ(parse_envelope("\0\xff\xff\xff\xff"s, out).error().as_errno(), EMSGSIZE);
  EXPECT_EQ(parse_envelope("\1\0\0\0\1x"s, out).error().as_errno(), EPROTO);
  EXPECT_EQ(parse_envelope("\x80\0\0\0\1x"s, out).error().as_errno(), EPROTO);
}

TEST(EnvelopeReader, AnyCutGivesTheSameMessages) {
  const std::string stream =
      make_envelope("one") + make_envelope("") + make_envelope("three") + "\2\0\0\0\2{}"s;
  for (std::size_t step = 1; step <= stream.size(); ++step) {
    EnvelopeReader reader;
    std::vector<std::string> seen;
    const EnvelopeReader::Take take = [&](const Envelope& e) -> base::Result<void> {
      seen.emplace_back(e.payload);
      return {};
    };
    for (std::size_t at = 0; at < stream.size(); at += step) {
      ASSERT_TRUE(reader.feed(std::string_view(stream).substr(at, step), take));
    }
    EXPECT_EQ(seen, (std::vector<std::string>{"one", "", "three", "{}"})) << step;
    EXPECT_TRUE(reader.ended());
    EXPECT_EQ(reader.feed("x", take).error().as_errno(), EPROTO);
  }
}

TEST(EnvelopeReader, RandomBytesNeverHarm) {
  std::mt19937_64 rng(7);
  for (int round = 0; round < 2000; ++round) {
    EnvelopeReader reader;
    std::string bytes;
    for (std::size_t i = 0, n = rng() % 64; i < n; ++i)
      bytes += static_cast<char>(rng() % 4 == 0 ? rng() : rng() % 4);
    (void)reader
        .feed(bytes,
              [](const Envelope& e) -> base::Result<void> {
                (void)parse_process_event(e.payload);
                (void)parse_end_message(e.payload);
                return {};
              })
        .ok();
  }
}

TEST(ProcessEvents, AsEnvdSendsThem) {
  auto event = parse_process_event(R"({"event":{"start":{"pid":42}}})");
  ASSERT_TRUE(event);
  EXPECT_EQ(event->kind, ProcessEvent::Kind::kStart);
  EXPECT_EQ(event->pid, 42u);
  event = parse_process_event(R"({ "event" : {"data":{"stdout":"aGkK"}}})");
  EXPECT_EQ(event->data, "hi\n");
  event = parse_process_event(R"({"event":{"data":{"stderr":"AP8="}}})");
  EXPECT_EQ(event->kind, ProcessEvent::Kind::kStderr);
  EXPECT_EQ(event->data, "\0\xff"s);
  event = parse_process_event(R"({"event":{"end":{"exited":true,"status":"exit status 0"}}})");
  EXPECT_TRUE(event->end.exited);
  EXPECT_EQ(event->end.exit_code, 0);
  event = parse_process_event(R"({"event":{"end":{"exitCode":-1,"status":"signal: killed","error":"x"}}})");
  EXPECT_FALSE(event->end.exited);
  EXPECT_EQ(event->end.exit_code, -1);
  EXPECT_EQ(parse_process_event(R"({"event":{"keepalive":{}}})")->kind, ProcessEvent::Kind::kKeepalive);
  EXPECT_EQ(parse_process_event(R"({"event":{"new":{}}})")->kind, ProcessEvent::Kind::kOther);
}

TEST(ProcessEvents, WrongShapes) {
  for (const char* bad : {"", "{}", "[]", "null", "{", R"({"event":7})", R"({"event":{"start":7}})",
                          R"({"event":{"start":{"pid":-1}}})", R"({"event":{"start":{"pid":99999999999}}})",
                          R"({"event":{"data":{"stdout":"!!"}}})", R"({"event":{"data":{"stdout":7}}})",
                          R"({"event":{"data":{"stdout":"aGk"}}})", R"({"event":{"end":{"exitCode":"x"}}})",
                          R"({"event":{"end":[]}})"}) {
    EXPECT_FALSE(parse_process_event(bad)) << bad;
  }
}

TEST(EndMessages, ErrorsAndNone) {
  EXPECT_FALSE(parse_end_message("{}"));
  EXPECT_FALSE(parse_end_message(R"({"metadata":{}})"));
  EXPECT_EQ(parse_end_message(R"({"error":{"code":"not_found","message":"pid 42"}})")->code, "not_found");
  EXPECT_TRUE(parse_end_message("garbage"));
  EXPECT_TRUE(parse_end_message(R"({"error":7})"));
}

TEST(Entries, Shapes) {
  auto entry = parse_entry(
      R"({"entry":{"name":"a.txt","type":"FILE_TYPE_FILE","path":"/a.txt","size":"5","mode":420,"permissions":"-rw-r--r--","modifiedTime":"2026-01-02T03:04:05.678901Z"}})");
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->size, 5u);
  EXPECT_EQ(entry->mode, 0644u);
  EXPECT_EQ(entry->type, api::RemoteEntry::Type::kFile);
  EXPECT_EQ(parse_entries("{}")->size(), 0u);
  for (const char* bad :
       {"", "{}", R"({"entry":7})", R"({"entry":{"size":"-1"}})", R"({"entry":{"size":"x"}})"}) {
    EXPECT_FALSE(parse_entry(bad)) << bad;
  }
  EXPECT_FALSE(parse_entries(R"({"entries":[1]})"));
}

TEST(Entries, JsonWithinItsLimits) {
  const auto nested = [](std::size_t depth) {
    return R"({"code":"x","a":)" + std::string(depth, '[') + std::string(depth, ']') + "}";
  };
  EXPECT_TRUE(parse_rpc_error(nested(15)));
  EXPECT_FALSE(parse_rpc_error(nested(16)));
  EXPECT_FALSE(parse_rpc_error(nested(1'000'000)));
  const auto many = [](std::size_t count) {
    std::string text = R"({"code":"x","a":[0)";
    while (--count > 0) text += ",0";
    return text + "]}";
  };
  EXPECT_TRUE(parse_rpc_error(many(1000)));
  EXPECT_FALSE(parse_rpc_error(many(300'000)));
  EXPECT_TRUE(parse_entries(many(300'000)));
}

TEST(Base64, RoundTrip) {
  for (const std::string& text : {""s, "a"s, "ab"s, "abc"s, "\0\xff\x80"s, std::string(100'000, 'x')}) {
    EXPECT_EQ(base64_decode(base64_encode(text)), text);
  }
  EXPECT_EQ(base64_encode("root:"), "cm9vdDo=");
}

}  // namespace
}  // namespace nearbox::http
