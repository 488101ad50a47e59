// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <map>
#include <optional>
#include <set>
#include <sys/stat.h>

#include "tests/unit/journal/journal_test_util.h"

// Loss of power: what was synced is there, of the rest a random part.
namespace nearbox::test {
namespace {

using journal::Journal;
using journal::Options;
using journal::Seq;

constexpr std::size_t kPage = 512;

// Knows what the disk has for sure: contents by fdatasync, names by fsync of the directory. It is stricter
// than file systems are: names come and go one by one, pages in any order, and what a failed sync left
// behind never reaches the disk, however often it is synced again.
class DiskIo : public QuickIo {
 public:
  explicit DiskIo(std::uint64_t seed) : rng_(seed) {}
  int fail_every = 0;  // one of so many syncs fails

  int openat(int dir, const char* name, int flags, mode_t m) override {
    const int fd = Io::openat(dir, name, flags, m);
    if (fd < 0 || (flags & O_DIRECTORY) != 0) return fd;
    dir_ = dir;
    if ((flags & O_CREAT) != 0 && !names_.contains(name)) {
      names_[name] = nodes_.size();
      nodes_.emplace_back();
    }
    fds_[fd] = names_[name];
    return fd;
  }
  int close(int fd) override {
    fds_.erase(fd);
    return Io::close(fd);
  }
  int fdatasync(int fd) override {
    Node& node = nodes_[fds_.at(fd)];
    const auto now = content(fd);
    if (fails()) {
      for (std::size_t at = 0; at < now.size(); at += kPage) {
        if (now.substr(at, kPage) != padded(node.durable, at, now)) node.lost.insert(at);
      }
      return -1;
    }
    auto next = now;
    for (const auto at : node.lost) {
      if (at >= next.size()) continue;
      const auto old = padded(node.durable, at, next);
      next.replace(at, old.size(), old);
    }
    node.durable = next;
    return 0;
  }
  int fsync(int /*fd*/) override {
    if (fails()) return -1;
    durable_names_ = names_;
    return 0;
  }
  int renameat(int dir, const char* from, const char* to) override {
    const int rc = Io::renameat(dir, from, to);
    if (rc == 0) names_[to] = names_[from], names_.erase(from);
    return rc;
  }
  int unlinkat(int dir, const char* name) override {
    const auto it = names_.find(name);
    if (it != names_.end()) nodes_[it->second].last = by_name(dir, name);
    const int rc = Io::unlinkat(dir, name);
    if (rc == 0 && it != names_.end()) names_.erase(it);
    return rc;
  }

  // What a machine finds that starts again now.
  void power_loss(const std::string& dir, const std::string& out) {
    fs::create_directories(out);
    std::set<std::string> all;
    for (const auto& [name, node] : names_) all.insert(name);
    for (const auto& [name, node] : durable_names_) all.insert(name);
    for (const auto& name : all) {
      const auto before = durable_names_.find(name);
      const auto after = names_.find(name);
      const bool was = before != durable_names_.end();
      const bool is = after != names_.end();
      if (was != is && rng_() % 2 == 0) continue;
      const Node& node = nodes_[is ? after->second : before->second];
      std::ofstream(out + "/" + name, std::ios::binary)
          << survivors(node, is ? read_all(dir + "/" + name) : node.last);
    }
  }

 private:
  struct Node {
    std::string durable;
    std::string last;            // when it was unlinked
    std::set<std::size_t> lost;  // pages that a failed sync left
  };

  bool fails() {
    if (fail_every == 0 || rng_() % static_cast<std::uint64_t>(fail_every) != 0) return false;
    errno = EIO;
    return true;
  }
  static std::string read_all(const std::string& name) {
    std::ifstream in(name, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  }
  static std::string content(int fd) { return read_all("/proc/self/fd/" + std::to_string(fd)); }
  static std::string by_name(int dir, const char* name) {
    return read_all("/proc/self/fd/" + std::to_string(dir) + "/" + name);
  }
  // The page at `at` as the disk has it, with zeros where it has less than `whole`.
  static std::string padded(const std::string& durable, std::size_t at, const std::string& whole) {
    std::string page = at < durable.size() ? durable.substr(at, kPage) : "";
    page.resize(std::min(kPage, whole.size() - at), '\0');
    return page;
  }
  std::string survivors(const Node& node, const std::string& now) {
    if (now.size() < node.durable.size()) return rng_() % 2 == 0 ? now : node.durable;
    const std::size_t grown = now.size() - node.durable.size();
    std::string out = now.substr(0, node.durable.size() + (grown == 0 ? 0 : rng_() % (grown + 1)));
    const bool in_order = rng_() % 3 == 0;
    for (std::size_t at = 0; at < out.size(); at += kPage) {
      const bool kept = !node.lost.contains(at) && (in_order || rng_() % 2 == 0);
      if (kept) continue;
      const auto old = padded(node.durable, at, out);
      out.replace(at, old.size(), old);
    }
    return out;
  }

  std::mt19937_64 rng_;
  int dir_ = -1;
  std::vector<Node> nodes_;
  std::map<std::string, std::size_t> names_;
  std::map<std::string, std::size_t> durable_names_;
  std::map<int, std::size_t> fds_;
};

struct Verdict {
  int lost = 0;      // synced, not acknowledged, and not replayed
  int repeated = 0;  // acknowledged, synced, and replayed
  int wrong = 0;     // not what was appended, or not in order
  std::size_t synced = 0;
};

// Random work until the power goes; then what the next start finds.
Verdict one_life(std::uint64_t seed, int fail_every) {
  const TempDir dir;
  DiskIo disk(seed);
  Options options;
  options.max_bytes = 256 << 10;
  options.segment_bytes = 8 << 10;
  options.idle_bytes = 2 << 10;
  options.io = &disk;
  std::mt19937_64 rng(seed + 1);
  std::map<Seq, std::uint64_t> live, safe;
  std::set<Seq> acked, safely_acked;
  auto opened = must_open(dir / "j", options);
  disk.fail_every = fail_every;
  std::uint64_t number = 0;
  for (std::uint64_t step = 50 + rng() % 400; step > 0; --step) {
    const auto what = rng() % 20;
    if (what < 14) {
      ++number;
      const auto seq = append_one(*opened.journal, number, rng() % 5 == 0 ? rng() % 3000 : rng() % 100);
      if (seq) live[*seq] = number;
    } else if (what < 16) {
      std::vector<Seq> seqs;
      for (const auto& [seq, order] : live) {
        if (rng() % 4 == 0) seqs.push_back(seq);
      }
      if (seqs.empty()) continue;
      EXPECT_TRUE(opened.journal->acknowledge(seqs));
      for (const Seq seq : seqs) live.erase(seq), safe.erase(seq), acked.insert(seq);
    } else if (opened.journal->sync(soon())) {
      safe = live;
      safely_acked = acked;
    }
  }
  disk.power_loss(dir / "j", dir / "after");
  opened.journal.reset();
  const auto after = must_open(dir / "after");
  Verdict verdict;
  verdict.synced = safe.size();
  std::map<Seq, std::uint64_t> got;
  for (const auto& record : after.contents.records) {
    if (!is_sample(record) || (!got.empty() && got.rbegin()->first >= record.seq)) ++verdict.wrong;
    got[record.seq] = record.order;
    if (safely_acked.contains(record.seq)) ++verdict.repeated;
  }
  for (const auto& [seq, order] : safe) {
    const auto it = got.find(seq);
    if (it == got.end() || it->second != order) ++verdict.lost;
  }
  return verdict;
}

Verdict many_lives(int lives, int fail_every) {
  Verdict all;
  for (int i = 0; i < lives; ++i) {
    SCOPED_TRACE("seed " + std::to_string(seed() + static_cast<std::uint64_t>(i)));
    const auto one = one_life(seed() + static_cast<std::uint64_t>(i), fail_every);
    EXPECT_TRUE(one.lost == 0 || ::testing::Test::HasFailure() || base::fault::active("journal.no_fsync"))
        << "lost " << one.lost;
    all.lost += one.lost, all.repeated += one.repeated, all.wrong += one.wrong, all.synced += one.synced;
  }
  return all;
}

TEST(JournalPower, WhatWasSyncedIsThere) {
  const auto all = many_lives(400, 0);
  EXPECT_EQ(all.lost, 0);
  EXPECT_EQ(all.repeated, 0);
  EXPECT_EQ(all.wrong, 0);
  EXPECT_GT(all.synced, 4000U);
}

// A sync that failed takes pages with it; the one that succeeds afterwards has written them elsewhere.
TEST(JournalPower, AFailedSyncIsNoLoss) {
  const auto all = many_lives(400, 6);
  EXPECT_EQ(all.lost, 0);
  EXPECT_EQ(all.repeated, 0);
  EXPECT_EQ(all.wrong, 0);
  EXPECT_GT(all.synced, 4000U);
}

// Without the system calls the same lives lose what was promised.
TEST(JournalPower, SyncOff) {
  const Faults faults("journal.no_fsync");
  EXPECT_GT(many_lives(50, 0).lost, 0);
}

}  // namespace
}  // namespace nearbox::test
