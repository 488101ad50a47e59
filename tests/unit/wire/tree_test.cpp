// SPDX-License-Identifier: Apache-2.0
#include "client/wire/tree.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sys/stat.h>

#include <gtest/gtest.h>
#include <zstd.h>

namespace nearbox::wire {
namespace {

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

bool operator==(const TreeEntry& a, const TreeEntry& b) {
  return a.name == b.name && a.attr == b.attr && a.target == b.target;
}

void expect_same(const TreeBlock& a, const TreeBlock& b) {
  EXPECT_EQ(a.path, b.path);
  EXPECT_EQ(a.attr, b.attr);
  EXPECT_EQ(a.flags, b.flags);
  EXPECT_EQ(a.error, b.error);
  ASSERT_EQ(a.entries.size(), b.entries.size());
  for (std::size_t i = 0; i < a.entries.size(); ++i) EXPECT_TRUE(a.entries[i] == b.entries[i]) << i;
}

class Random {
 public:
  explicit Random(std::uint64_t with) : rng_(with) {}
  std::uint64_t below(std::uint64_t n) { return rng_() % n; }
  // Any bit length is as likely as another, so that extremes come up.
  std::uint64_t wide() {
    const auto bits = below(65);
    return bits == 0 ? 0 : rng_() >> (64 - bits);
  }
  std::string name() {
    std::string out(1 + below(below(20) == 0 ? 255 : 20), 'x');
    for (auto& c : out) {
      do c = static_cast<char>(below(256));
      while (c == '/' || c == '\0');
    }
    return out == "." || out == ".." ? "dot" : out;
  }
  Attr attr(std::uint32_t type) {
    Attr a;
    a.ino = wide(), a.dev = below(3) == 0 ? wide() % 40 : 2049;
    a.mode = type | static_cast<std::uint32_t>(below(010000));
    a.nlink = static_cast<std::uint32_t>(wide()), a.uid = static_cast<std::uint32_t>(wide());
    a.gid = static_cast<std::uint32_t>(wide()), a.rdev = wide(), a.size = wide();
    a.blocks = below(2) == 0 ? wide() : (a.size >> 12) * 8 + ((a.size & 4095) != 0 ? 8 : 0);
    a.mtime_ns = static_cast<std::int64_t>(below(2) == 0 ? wide() : ~wide());
    a.ctime_ns = below(2) == 0 ? a.mtime_ns : static_cast<std::int64_t>(~wide());
    a.version = wide();
    a.birth = below(3) == 0 ? birth_of(a.ctime_ns) : below(2) == 0 ? 7 : static_cast<std::uint32_t>(wide());
    return a;
  }
  TreeBlock block() {
    static constexpr std::uint32_t kTypes[] = {S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR,
                                               S_IFBLK, S_IFIFO, S_IFSOCK};
    TreeBlock b;
    for (auto depth = below(6); depth > 0; --depth) b.path += (b.path.empty() ? "" : "/") + name();
    b.attr = attr(S_IFDIR);
    b.flags = static_cast<std::uint32_t>(below(2) == 0 ? 0 : below(32));
    b.error = static_cast<std::int32_t>(below(4096));
    if ((b.flags & (kTreeFailed | kTreePseudo | kTreeNotExpanded)) != 0) return b;
    b.entries.resize(below(40));
    for (auto& entry : b.entries) {
      entry.name = name();
      entry.attr = attr(kTypes[below(7)]);
      if (S_ISLNK(entry.attr.mode)) entry.target = "../" + name();
    }
    return b;
  }

 private:
  std::mt19937_64 rng_;
};

TEST(Tree, RoundTripsAnyBlocksInAnyPieces) {
  SCOPED_TRACE("seed " + std::to_string(seed()));
  Random random(seed());
  for (int round = 0; round < 60; ++round) {
    std::vector<TreeBlock> sent(random.below(20));
    TreeEncoder encoder;
    Bytes bytes;
    for (auto& block : sent) {
      block = random.block();
      const auto before = bytes.size();
      encoder.add(block, bytes);
      std::size_t bound = TreeEncoder::kMaxBlockHead;
      for (const auto& entry : block.entries) bound += TreeEncoder::estimate(entry);
      ASSERT_LE(bytes.size() - before, bound);
    }
    TreeDecoder decoder;
    std::vector<TreeBlock> got;
    for (std::size_t at = 0; at < bytes.size();) {
      const auto size =
          std::min<std::size_t>(1 + random.below(random.below(2) == 0 ? 5 : 5000), bytes.size() - at);
      ASSERT_TRUE(decoder.feed(ByteView(bytes).subspan(at, size),
                               [&](TreeBlock&& b) { got.push_back(std::move(b)); }));
      at += size;
    }
    EXPECT_TRUE(decoder.at_block_boundary());
    ASSERT_EQ(got.size(), sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i) expect_same(sent[i], got[i]);
  }
}

TEST(Tree, EstimateBoundsTheLongestEntry) {
  TreeEntry entry;
  entry.name = std::string(kMaxName, 'n');
  entry.target = std::string(kMaxPath - 1, 't');
  auto& a = entry.attr;
  a.mode = 0xffffafff, a.nlink = a.uid = a.gid = 0xffffffff;
  a.ino = 1ull << 63, a.dev = a.rdev = a.size = a.version = ~0ull, a.blocks = 1ull << 63;
  a.mtime_ns = INT64_MIN, a.ctime_ns = INT64_MIN / 2, a.birth = birth_of(a.ctime_ns) + 0x80000000;
  TreeBlock empty;
  Bytes one, two;
  TreeEncoder().add(empty, one);
  auto full = empty;
  full.entries.push_back(entry);
  TreeEncoder().add(full, two);
  EXPECT_LE(two.size() - one.size(), TreeEncoder::estimate(entry));
}

int feed_all(ByteView bytes) {
  TreeDecoder decoder;
  const auto result = decoder.feed(bytes, [](TreeBlock&&) {});
  return result ? 0 : result.error().as_errno();
}

Bytes with_length(ByteView body) {
  const auto length = static_cast<std::uint32_t>(body.size());
  Bytes out(sizeof length);
  std::memcpy(out.data(), &length, sizeof length);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

TEST(Tree, BlockCutAnywhereIsRefused) {
  Random random(seed());
  for (int round = 0; round < 40; ++round) {
    Bytes bytes;
    TreeEncoder().add(random.block(), bytes);
    ASSERT_EQ(feed_all(bytes), 0);
    const auto body = ByteView(bytes).subspan(4);
    for (std::size_t size = 0; size < body.size(); ++size) {
      EXPECT_EQ(feed_all(with_length(body.first(size))), EPROTO) << size;
    }
    auto longer = Bytes(body.begin(), body.end());
    longer.push_back(std::byte{0});
    EXPECT_EQ(feed_all(with_length(longer)), EPROTO);
  }
}

TEST(Tree, CorruptBytesNeverBreakTheDecoder) {
  SCOPED_TRACE("seed " + std::to_string(seed()));
  Random random(seed());
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    Bytes bytes;
    TreeEncoder encoder;
    for (int i = 0; i < 3; ++i) encoder.add(random.block(), bytes);
    for (auto flips = 1 + random.below(4); flips > 0; --flips) {
      bytes[random.below(bytes.size())] = static_cast<std::byte>(random.below(256));
    }
    TreeDecoder decoder;
    const auto result = decoder.feed(bytes, [](TreeBlock&& block) {
      EXPECT_LE(block.entries.size(), kMaxBlockEntries);
      EXPECT_LT(block.path.size(), kMaxPath);
    });
    if (!result) {
      ++refused;
      EXPECT_EQ(result.error().as_errno(), EPROTO);
      EXPECT_FALSE(decoder.feed(bytes, [](TreeBlock&&) { ADD_FAILURE() << "dead"; }));
    }
  }
  EXPECT_GT(refused, 500);
}

int code_of(const TreeBlock& block) {
  Bytes bytes;
  TreeEncoder().add(block, bytes);
  return feed_all(bytes);
}

TEST(Tree, RefusesWhatNoDirectoryCanHold) {
  TreeBlock good;
  good.path = "a/b";
  good.entries.push_back({"name", Attr{.mode = S_IFREG | 0644}, ""});
  EXPECT_EQ(code_of(good), 0);
  for (const char* name : {"", ".", "..", "a/b"}) {
    auto bad = good;
    bad.entries[0].name = name;
    EXPECT_EQ(code_of(bad), EPROTO) << name;
  }
  for (const char* path : {"/a", "a/", "a//b", "../a", "a/."}) {
    auto bad = good;
    bad.path = path;
    EXPECT_EQ(code_of(bad), EPROTO) << path;
  }
  auto bad = good;
  bad.entries[0].attr.mode = 0644;
  EXPECT_EQ(code_of(bad), EPROTO);
  bad = good, bad.flags = 1u << 20;
  EXPECT_EQ(code_of(bad), EPROTO);
  bad = good, bad.flags = kTreeFailed;
  EXPECT_EQ(code_of(bad), EPROTO);
  bad = good, bad.error = 5000;
  EXPECT_EQ(code_of(bad), EPROTO);
  bad = good, bad.entries.assign(kMaxBlockEntries + 1, good.entries[0]);
  EXPECT_EQ(code_of(bad), EPROTO);
  bad = good, bad.entries[0].name = std::string(kMaxName + 1, 'n');
  EXPECT_EQ(code_of(bad), EPROTO);
  bad.entries.assign(1100, {std::string(255, 'n'), good.entries[0].attr, ""});
  EXPECT_EQ(code_of(bad), EPROTO) << "more than kMaxTreeBlock bytes";
}

TEST(Tree, TooManyDevicesAreRefused) {
  TreeEncoder encoder;
  Bytes bytes;
  TreeBlock block;
  for (std::uint64_t i = 0; i < kMaxTreeDevices; ++i) block.attr.dev = i, encoder.add(block, bytes);
  EXPECT_EQ(feed_all(bytes), 0);
  block.attr.dev = 1ull << 40, encoder.add(block, bytes);
  EXPECT_EQ(feed_all(bytes), EPROTO);
}

TEST(Tree, ALengthOutsideTheLimitIsRefusedAtOnce) {
  for (const std::uint32_t length : {0u, static_cast<std::uint32_t>(kMaxTreeBlock + 1), 0xffffffffu}) {
    Bytes bytes(4);
    std::memcpy(bytes.data(), &length, 4);
    EXPECT_EQ(feed_all(bytes), EPROTO) << length;
  }
}

// Not asserted: the number is for people, and moves with zstd.
enum class Births { kNone, kWritten, kImage, kAnyhow };
void report_size(const char* what, Births births) {
  Random random(7);
  static constexpr const char* kWords[] = {"index", "util",    "parse",  "stream", "README", "package",
                                           "types", "async",   "helper", "module", "error",  "client",
                                           "core",  "options", "test",   "path"};
  static constexpr const char* kEnds[] = {".js", ".d.ts", ".json", ".md", ".js.map", ".mjs", ".ts", ".cjs"};
  TreeEncoder encoder;
  Bytes bytes;
  std::uint64_t ino = 400000, entries = 0;
  std::int64_t now = 1718000000123456789;
  const auto birth = [&](std::int64_t ctime) -> std::uint32_t {
    if (births == Births::kNone) return 0;
    if (births == Births::kImage) return 7;
    if (births == Births::kAnyhow) return static_cast<std::uint32_t>(random.wide());
    const auto made = ctime - static_cast<std::int64_t>(random.below(2)) * 4'000'000;  // a tick before
    return birth_of(made);
  };
  for (int dir = 0; dir < 5000; ++dir) {
    TreeBlock block;
    block.path = "node_modules/" + std::string(kWords[dir % 16]) + "-" + std::string(kWords[dir / 16 % 16]) +
                 std::to_string(dir / 256) + "/dist";
    block.attr =
        Attr{.ino = ++ino, .dev = 2049, .mode = S_IFDIR | 0755, .nlink = 2, .size = 4096, .blocks = 8};
    block.attr.mtime_ns = block.attr.ctime_ns = now;
    block.attr.birth = birth(now);
    for (int i = 0; i < 20; ++i) {
      TreeEntry entry;
      entry.name =
          std::string(kWords[random.below(16)]) + "_" + kWords[random.below(16)] + kEnds[random.below(8)];
      now += static_cast<std::int64_t>(random.below(3000000));
      entry.attr =
          Attr{.ino = ++ino, .dev = 2049, .mode = S_IFREG | 0644, .nlink = 1, .size = random.wide() >> 46};
      entry.attr.blocks = (entry.attr.size + 4095) / 4096 * 8;
      entry.attr.mtime_ns = now - now % 1000000;
      entry.attr.ctime_ns = now;
      entry.attr.birth = birth(now);
      block.entries.push_back(entry), ++entries;
    }
    encoder.add(block, bytes);
  }
  Bytes packed(ZSTD_compressBound(bytes.size()));
  const auto size = ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), 1);
  ASSERT_EQ(ZSTD_isError(size), 0u);
  std::printf("tree stream, %s: %.1f bytes an entry, %.1f after zstd -1\n", what,
              static_cast<double>(bytes.size()) / static_cast<double>(entries),
              static_cast<double>(size) / static_cast<double>(entries));
}

TEST(Tree, ReportsTheSizeOfARealisticTree) {
  report_size("no births", Births::kNone);
  report_size("births near the change times", Births::kWritten);
  report_size("one birth for all", Births::kImage);
  report_size("births at random", Births::kAnyhow);
}

}  // namespace
}  // namespace nearbox::wire
