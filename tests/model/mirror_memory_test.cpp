// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <cstdio>
#include <malloc.h>
#include <sys/stat.h>

#include <gtest/gtest.h>

#include "sync/core/mirror.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NEARBOX_OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define NEARBOX_OWN_MALLOC 0
#else
#define NEARBOX_OWN_MALLOC 1
#endif
#else
#define NEARBOX_OWN_MALLOC 1
#endif

namespace nearbox::sync {
namespace {

// What malloc has given out, its own bytes around each block included.
std::size_t heap_in_use() {
  const auto info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

wire::Attr attr_of(std::uint64_t ino, std::uint32_t mode) {
  wire::Attr a;
  a.ino = ino, a.dev = 2049, a.mode = mode, a.nlink = 1, a.uid = a.gid = 1000;
  a.size = ino * 7, a.blocks = 8,
  a.mtime_ns = a.ctime_ns = 1718000000000000000 + static_cast<std::int64_t>(ino);
  return a;
}

std::string name_of(char kind, std::size_t i) {
  char text[16];
  std::snprintf(text, sizeof text, "%c-%013zu", kind, i);
  return text;  // 15 bytes
}

// Promise (design.md, section 3): at most 200 bytes an entry.
TEST(MirrorMemory, AMillionEntriesTakeAtMost200BytesEach) {
  constexpr std::size_t kDirs = 50'000, kEntries = 1'000'000, kFilesPerDir = kEntries / kDirs - 1,
                        kDirsPerTop = 250;
  const auto before = heap_in_use();
  const auto start = std::chrono::steady_clock::now();
  std::size_t biggest_step = 0, used = before;
  Mirror mirror;
  Changes changes;
  mirror.set_root(attr_of(2, S_IFDIR | 0755), changes);
  std::uint64_t ino = 10;
  const auto tops = kDirs / kDirsPerTop;
  wire::TreeBlock block;
  const auto apply = [&] {
    mirror.apply_block(Mirror::kRoot, block, changes);
    Changes().swap(changes);
    block.entries.clear();
    if (NEARBOX_OWN_MALLOC != 0) {
      const auto now = heap_in_use();
      biggest_step = std::max(biggest_step, now > used ? now - used : 0);
      used = now;
    }
  };
  block.attr = attr_of(2, S_IFDIR | 0755);
  for (std::size_t i = 0; i < tops; ++i) {
    block.entries.push_back({name_of('t', i), attr_of(100 + i, S_IFDIR | 0755), {}});
  }
  apply();
  for (std::size_t top = 0; top < tops; ++top) {
    block.path = name_of('t', top), block.attr = attr_of(100 + top, S_IFDIR | 0755);
    const auto first = ino = 1'000'000 + top * 100'000;
    for (std::size_t i = 0; i < kDirsPerTop; ++i) {
      block.entries.push_back({name_of('d', i), attr_of(ino++, S_IFDIR | 0755), {}});
    }
    apply();
    for (std::size_t i = 0; i < kDirsPerTop; ++i) {
      block.path = name_of('t', top) + "/" + name_of('d', i), block.attr = attr_of(first + i, S_IFDIR | 0755);
      for (std::size_t f = 0; f < kFilesPerDir; ++f) {
        block.entries.push_back({name_of('f', f), attr_of(ino++, S_IFREG | 0644), {}});
      }
      apply();
    }
  }
  wire::TreeBlock().entries.swap(block.entries);
  block = {};
  const auto took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ASSERT_EQ(mirror.name_count(), kEntries + tops);
  const auto each = static_cast<double>(mirror.memory_bytes()) / static_cast<double>(mirror.name_count());
  std::printf("mirror: %zu entries, %.1f bytes an entry by its own count, built in %.2f s\n",
              mirror.name_count(), each, took);
  EXPECT_LE(each, 200);
  if (NEARBOX_OWN_MALLOC == 0) return;
  const auto real = static_cast<double>(heap_in_use() - before) / static_cast<double>(mirror.name_count());
  std::printf("mirror: %.1f bytes an entry by malloc's count, largest step %zu KiB\n", real,
              biggest_step / 1024);
  EXPECT_LE(real, 200);
  EXPECT_NEAR(real, each, 10) << "memory_bytes() must not promise what malloc does not keep";
  EXPECT_LE(biggest_step, 2u << 20) << "growth must not jump";
}

// Removing and adding names of other lengths again and again reuses what was freed.
TEST(MirrorMemory, ChurnDoesNotGrow) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(attr_of(2, S_IFDIR | 0755), changes);
  std::size_t settled = 0;
  for (std::size_t round = 0; round < 60; ++round) {
    for (std::size_t i = 0; i < 5000; ++i) {
      const std::string name = name_of('n', i) + std::string((i * 7 + round * 3) % 64, 'x');
      (void)mirror.link(Mirror::kRoot, name, attr_of(100 + i + round * 5000, S_IFREG | 0644), {}, changes);
    }
    std::vector<std::string> names;
    mirror.list(Mirror::kRoot, 0, [&](std::uint64_t, std::string_view name, NodeIndex) {
      names.emplace_back(name);
      return true;
    });
    for (const auto& name : names) mirror.unlink(Mirror::kRoot, name, changes);
    changes.clear();
    ASSERT_EQ(mirror.name_count(), 0u);
    ASSERT_EQ(mirror.node_count(), 1u);
    if (round == 9) settled = mirror.memory_bytes();
  }
  EXPECT_LE(mirror.memory_bytes(), settled + settled / 10);
}

}  // namespace
}  // namespace nearbox::sync
