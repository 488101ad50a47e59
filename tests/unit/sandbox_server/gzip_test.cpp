// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/gzip.h"

#include <random>

#include <gtest/gtest.h>

#include "tools/sandbox_server/gunzip.h"

namespace nearbox::sandbox_server {
namespace {

TEST(Gzip, WhatComesOutGoesBackIn) {
  std::mt19937 random(7);
  for (const std::size_t size : {0U, 1U, 1000U, 300'000U}) {
    std::string plain(size, '\0');
    for (auto& c : plain) c = static_cast<char>(random() % 7 == 0 ? random() : 'a');
    Gzip gzip;
    std::string zipped;
    for (std::size_t at = 0; at < plain.size(); at += 77'777) zipped += gzip.add(plain.substr(at, 77'777));
    zipped += gzip.finish();
    std::size_t at = 0;
    Gunzip gunzip([&](char* data, std::size_t room) -> base::Result<std::size_t> {
      const auto got = zipped.copy(data, room, at);
      at += got;
      return got;
    });
    std::string back;
    std::string chunk(5000, '\0');
    while (true) {
      const auto got = gunzip.read(chunk.data(), chunk.size());
      ASSERT_TRUE(got);
      if (*got == 0) break;
      back.append(chunk.data(), *got);
    }
    EXPECT_EQ(back, plain);
  }
}

TEST(EncodingOf, GzipIsForThoseWhoAskForItAlone) {
  using Encoding = BodyEncoding;
  EXPECT_EQ(encoding_of("", false), Encoding::kIdentity);
  EXPECT_EQ(encoding_of("gzip", false), Encoding::kGzip);
  EXPECT_EQ(encoding_of("gzip;q=0", false), Encoding::kIdentity);
  EXPECT_EQ(encoding_of("gzip, deflate", false), Encoding::kIdentity);
  EXPECT_EQ(encoding_of("gzip, deflate, br, zstd", false), Encoding::kIdentity);
  EXPECT_EQ(encoding_of("identity, gzip", false), Encoding::kIdentity);
  EXPECT_EQ(encoding_of("*", false), Encoding::kIdentity);
  EXPECT_EQ(encoding_of("gzip, identity;q=0", false), Encoding::kGzip);
  EXPECT_EQ(encoding_of("identity;q=0, *", false), Encoding::kGzip);
  EXPECT_EQ(encoding_of("identity;q=0", false), Encoding::kNone);
  EXPECT_EQ(encoding_of("br, *;q=0.0", false), Encoding::kNone);
  EXPECT_EQ(encoding_of("gzip", true), Encoding::kIdentity);
  EXPECT_EQ(encoding_of("gzip, identity;q=0", true), Encoding::kNone);
}

}  // namespace
}  // namespace nearbox::sandbox_server
