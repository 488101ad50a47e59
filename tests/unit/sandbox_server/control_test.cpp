// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/control.h"

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

TEST(PageToken, RoundTrip) {
  for (const bool ascending : {false, true}) {
    const PageKey key{1767323045678901234, "iabc123"};
    const auto back = decode_page_token(encode_page_token(key, ascending), ascending);
    ASSERT_TRUE(back);
    EXPECT_EQ(back->started_ns, key.started_ns);
    EXPECT_EQ(back->id, key.id);
    EXPECT_FALSE(decode_page_token(encode_page_token(key, ascending), !ascending));
  }
  for (const char* bad : {"", "zzz", "aGVsbG8=", "X19pYWJj"})
    EXPECT_FALSE(decode_page_token(bad, false)) << bad;
}

// As the SDK sends {"k y": "v&1"}; the query itself has been decoded once.
TEST(MetadataFilter, DecodesThrice) {
  const auto filter = decode_metadata_filter("k%2520y=v%25261");
  EXPECT_EQ(filter, (std::map<std::string, std::string>{{"k y", "v&1"}}));
  EXPECT_EQ(decode_metadata_filter("a=1&b=2").size(), 2U);
  EXPECT_TRUE(decode_metadata_filter("").empty());
}

}  // namespace
}  // namespace nearbox::sandbox_server
