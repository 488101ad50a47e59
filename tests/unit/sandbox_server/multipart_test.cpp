// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/multipart.h"

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

// A body that arrives `step` bytes at a time.
MultipartReader::Source pieces(std::string body, std::size_t step) {
  return [body = std::move(body), step, at = std::size_t{0}](char* data, std::size_t size) mutable {
    const auto count = std::min({step, size, body.size() - at});
    body.copy(data, count, at);
    at += count;
    return base::Result<std::size_t>(count);
  };
}

struct Read {
  std::string name;
  std::optional<std::string> filename;
  std::string data;
};

base::Result<std::vector<Read>> read_all(const std::string& body, std::size_t step, std::size_t chunk) {
  MultipartReader reader("XX", pieces(body, step));
  std::vector<Read> out;
  while (true) {
    auto part = reader.next();
    if (!part) return std::move(part).error();
    if (!*part) return out;
    Read read{(*part)->name, (*part)->filename, {}};
    std::string buffer(chunk, '\0');
    while (true) {
      const auto got = reader.read(buffer.data(), buffer.size());
      if (!got) return got.error();
      if (*got == 0) break;
      read.data.append(buffer, 0, *got);
    }
    out.push_back(std::move(read));
  }
}

std::string part(const std::string& disposition, const std::string& data) {
  return "--XX\r\nContent-Disposition: form-data; " + disposition +
         "\r\nContent-Type: application/octet-stream\r\n\r\n" + data + "\r\n";
}

TEST(Multipart, PartsInEverySizeOfPiece) {
  // Data that looks nearly like a delimiter.
  const std::string tricky = "\r\n--X\r\n--XY\r\n-\r\r\n--";
  const auto body = "preamble\r\n" + part(R"(name="file"; filename="a/b \"c\".txt")", "one") +
                    part(R"(name="other")", "") + part(R"(name=file; filename=plain)", tricky) +
                    "--XX--\r\nepilogue";
  for (std::size_t step : {1U, 2U, 3U, 7U, 64U, 100000U}) {
    for (std::size_t chunk : {1U, 5U, 100000U}) {
      const auto parts = read_all(body, step, chunk);
      ASSERT_TRUE(parts) << parts.error().context;
      ASSERT_EQ(parts->size(), 3U);
      EXPECT_EQ((*parts)[0].name, "file");
      EXPECT_EQ((*parts)[0].filename, "a/b \"c\".txt");
      EXPECT_EQ((*parts)[0].data, "one");
      EXPECT_FALSE((*parts)[1].filename);
      EXPECT_EQ((*parts)[1].data, "");
      EXPECT_EQ((*parts)[2].filename, "plain");
      EXPECT_EQ((*parts)[2].data, tricky);
    }
  }
}

TEST(Multipart, NoPreambleAndNoParts) {
  EXPECT_EQ(read_all("--XX--\r\n", 100, 100)->size(), 0U);
  EXPECT_EQ(read_all("--XX--", 1, 1)->size(), 0U);
}

TEST(Multipart, CutShortIsAnError) {
  const auto body = part(R"(name="file"; filename="x")", "0123456789") + "--XX--\r\n";
  for (std::size_t length = 0; length + 4 < body.size(); ++length) {
    EXPECT_FALSE(read_all(body.substr(0, length), 1000, 1000)) << length;
  }
}

TEST(Multipart, HeaderLimit) {
  const auto body = "--XX\r\nContent-Disposition: form-data; name=\"" +
                    std::string(MultipartReader::kMaxPartHeader, 'x') + "\"\r\n\r\nd\r\n--XX--\r\n";
  EXPECT_FALSE(read_all(body, 1000, 1000));
}

TEST(Multipart, SkippingPartsUnread) {
  const auto body =
      part(R"(name="a")", std::string(100000, 'z')) + part(R"(name="b")", "kept") + "--XX--\r\n";
  MultipartReader reader("XX", pieces(body, 1000));
  ASSERT_TRUE(*reader.next());
  const auto second = reader.next();
  ASSERT_TRUE(*second);
  EXPECT_EQ((*second)->name, "b");
  EXPECT_FALSE(*reader.next());
  EXPECT_FALSE(*reader.next());
}

TEST(Multipart, Boundaries) {
  EXPECT_EQ(MultipartReader::boundary_of("multipart/form-data; boundary=abc"), "abc");
  EXPECT_EQ(MultipartReader::boundary_of("multipart/form-data; charset=x; Boundary=\"a b\""), "a b");
  EXPECT_FALSE(MultipartReader::boundary_of("multipart/form-data"));
  EXPECT_FALSE(MultipartReader::boundary_of("multipart/form-data; boundary=" + std::string(500, 'x')));
}

TEST(Multipart, NoiseNeverHangsOrCrashes) {
  std::mt19937 rng(20260102);
  const std::string_view alphabet = "\r\n-X:;=\"\\a ";
  for (int round = 0; round < 2000; ++round) {
    std::string body = rng() % 2 == 0 ? "--XX" : "";
    for (auto left = rng() % 200; left > 0; --left) body.push_back(alphabet[rng() % alphabet.size()]);
    (void)read_all(body, 1 + rng() % 20, 1 + rng() % 20).ok();
  }
}

}  // namespace
}  // namespace nearbox::sandbox_server
