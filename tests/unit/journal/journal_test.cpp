// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <cstring>
#include <thread>

#include <xxhash.h>

#include "client/base/mutex.h"
#include "fs/journal/format.h"
#include "tests/unit/journal/journal_test_util.h"

namespace nearbox::test {
namespace {

using journal::Journal;
using journal::Options;
using journal::Seq;

std::vector<std::uint64_t> upto(std::uint64_t first, std::uint64_t last) {
  std::vector<std::uint64_t> out;
  for (; first <= last; ++first) out.push_back(first);
  return out;
}

TEST(Journal, ReplaysWhatWasNotAcknowledgedInOrder) {
  const TempDir dir;
  {
    auto opened = must_open(dir / "a/b/j");
    EXPECT_TRUE(opened.contents.records.empty());
    for (std::uint64_t i = 1; i <= 10; ++i) {
      const auto seq = append_one(*opened.journal, i, i == 4 ? 200'000 : 20);
      ASSERT_TRUE(seq) << seq.error().message();
      EXPECT_EQ(*seq, i);
    }
    ASSERT_TRUE(ack(*opened.journal, {2, 3, 7, 99, 2}));
    ASSERT_TRUE(ack(*opened.journal, {10}));
  }
  auto opened = must_open(dir / "a/b/j");
  EXPECT_EQ(orders(opened.contents.records), (std::vector<std::uint64_t>{1, 4, 5, 6, 8, 9}));
  EXPECT_TRUE(opened.contents.damages.empty());
  const auto next = append_one(*opened.journal, 11);
  ASSERT_TRUE(next);
  EXPECT_EQ(*next, 11U);
  opened.journal.reset();
  EXPECT_EQ(orders(must_open(dir / "a/b/j").contents.records),
            (std::vector<std::uint64_t>{1, 4, 5, 6, 8, 9, 11}));
}

TEST(Journal, OneOwner) {
  const TempDir dir;
  auto opened = must_open(dir / "j");
  const auto second = Journal::open(dir / "j");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().as_errno(), EBUSY);
  EXPECT_NE(second.error().context.find("in use"), std::string::npos);
  ASSERT_TRUE(append_one(*opened.journal, 1));
  const auto listed = Journal::list(dir / "j");
  ASSERT_TRUE(listed);
  EXPECT_EQ(orders(listed->records), upto(1, 1));
  opened.journal.reset();
  (void)must_open(dir / "j");
}

TEST(Journal, ListsWithoutOwning) {
  const TempDir dir;
  EXPECT_TRUE(Journal::list(dir / "none")->records.empty());
  {
    auto opened = must_open(dir / "j");
    for (std::uint64_t i = 1; i <= 4; ++i) ASSERT_TRUE(append_one(*opened.journal, i));
    ASSERT_TRUE(ack(*opened.journal, {1}));
    const auto stats = opened.journal->stats();
    EXPECT_EQ(stats.records, 3U);
    ASSERT_EQ(stats.labels.size(), 3U);
    EXPECT_EQ(stats.labels[1].label, "/mnt/1");
    EXPECT_EQ(stats.labels[1].records, 1U);
    EXPECT_GT(stats.labels[1].bytes, 100U);
    EXPECT_EQ(stats.bytes, stats.labels[0].bytes + stats.labels[1].bytes + stats.labels[2].bytes);
    EXPECT_EQ(stats.disk_bytes, disk_bytes(dir / "j"));
  }
  const auto before = files(dir / "j", "");
  const auto listed = Journal::list(dir / "j");
  ASSERT_TRUE(listed);
  EXPECT_EQ(orders(listed->records), upto(2, 4));
  EXPECT_EQ(listed->disk_bytes, disk_bytes(dir / "j"));
  EXPECT_EQ(files(dir / "j", ""), before);
}

TEST(Journal, ABatchIsOneWriteAndAllOrNothing) {
  const TempDir dir;
  struct CountingIo : journal::Io {
    ssize_t pwritev(int fd, const iovec* iov, int count, off_t at) override {
      ++writes;
      return Io::pwritev(fd, iov, count, at);
    }
    int writes = 0;
  } io;
  Options options;
  options.io = &io;
  auto opened = must_open(dir / "j", options);
  ASSERT_TRUE(append_one(*opened.journal, 1));
  io.writes = 0;
  std::vector<std::unique_ptr<Sample>> samples;
  std::vector<journal::Record> records;
  for (std::uint64_t i = 2; i <= 600; ++i) {
    samples.push_back(std::make_unique<Sample>(i, i % 100 == 0 ? 100'000 : 30));
    records.push_back(samples.back()->record());
  }
  const auto first = opened.journal->append(records);
  ASSERT_TRUE(first);
  EXPECT_EQ(*first, 2U);
  EXPECT_EQ(io.writes, 1);
  opened.journal.reset();
  // The last byte is missing: nothing of the batch counts.
  const auto name = dir / ("j/" + files(dir / "j", "seg-").front());
  EXPECT_EQ(orders(Journal::list(dir / "j")->records), upto(1, 600));
  fs::resize_file(name, fs::file_size(name) - 1);
  opened = must_open(dir / "j");
  EXPECT_EQ(orders(opened.contents.records), upto(1, 1));
  EXPECT_TRUE(opened.contents.damages.empty());
  EXPECT_GT(opened.contents.torn_bytes, 500'000U);
}

TEST(Journal, RefusesWhatIsOverItsLimits) {
  const TempDir dir;
  auto opened = must_open(dir / "j");
  const auto refused = [&](const journal::Record& record) {
    const auto result = opened.journal->append(std::span(&record, 1));
    return !result && result.error().as_errno() == EMSGSIZE;
  };
  const std::string long_name(journal::kMaxLabel + 1, 'x');
  const wire::Bytes big(journal::kMaxRecordBytes);
  const std::vector<journal::Part> parts(journal::kMaxParts + 1);
  EXPECT_TRUE(refused({1, long_name, "", {}, {}}));
  EXPECT_TRUE(refused({1, "", long_name, {}, {}}));
  EXPECT_TRUE(refused({1, "", "", big, {}}));
  EXPECT_TRUE(refused({1, "", "", {}, parts}));
  EXPECT_FALSE(opened.journal->append({}));
  const std::vector<journal::Record> many(journal::kMaxBatch + 1);
  EXPECT_EQ(opened.journal->append(many).error().as_errno(), EMSGSIZE);
  const wire::Bytes large(journal::kMaxRecordBytes - 100);
  const std::vector<journal::Record> wide(5, journal::Record{1, "", "", large, {}});
  EXPECT_EQ(opened.journal->append(wide).error().as_errno(), EMSGSIZE);
  EXPECT_TRUE(opened.journal->append(std::span(wide).first(3)));
}

TEST(Journal, IsBoundedAndSaysSo) {
  const TempDir dir;
  Options options;
  options.max_bytes = 1 << 20;
  options.segment_bytes = 64 << 10;
  auto opened = must_open(dir / "j", options);
  std::uint64_t number = 0;
  base::Result<Seq> last = Seq{0};
  while ((last = append_one(*opened.journal, number + 1, 3000))) ++number;
  EXPECT_EQ(last.error().as_errno(), journal::kFull);
  EXPECT_GT(number, 250U);
  EXPECT_LE(disk_bytes(dir / "j"), options.max_bytes);
  // Acknowledging everything one by one stays within the bound, and gives the room back with a sync.
  for (Seq seq = 1; seq <= number; ++seq) ASSERT_TRUE(ack(*opened.journal, {seq}));
  EXPECT_LE(disk_bytes(dir / "j"), options.max_bytes);
  EXPECT_TRUE(opened.journal->needs_sync());
  ASSERT_TRUE(opened.journal->sync(soon()));
  EXPECT_FALSE(opened.journal->needs_sync());
  EXPECT_EQ(opened.journal->stats().disk_bytes, disk_bytes(dir / "j"));
  EXPECT_TRUE(append_one(*opened.journal, number + 1, 3000));

  options.max_records = 5;
  opened.journal.reset();
  opened = must_open(dir / "j", options);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(append_one(*opened.journal, 1));
  EXPECT_EQ(append_one(*opened.journal, 1).error().as_errno(), journal::kFull);
}

TEST(Journal, IdleTakesLessThanAMegabyte) {
  const TempDir dir;
  auto opened = must_open(dir / "j");
  for (int round = 0; round < 3; ++round) {
    std::vector<Seq> seqs;
    for (int i = 0; i < 60; ++i) {
      const auto seq = append_one(*opened.journal, 5, 500'000);
      ASSERT_TRUE(seq);
      seqs.push_back(*seq);
      if (i % 2 == 0) continue;
      ASSERT_TRUE(opened.journal->acknowledge(seqs));
      seqs.clear();
    }
    EXPECT_GT(disk_bytes(dir / "j"), 20'000'000U);
    ASSERT_TRUE(opened.journal->sync(soon()));
    EXPECT_FALSE(opened.journal->needs_sync());
    EXPECT_LE(disk_bytes(dir / "j"), 1U << 20);
    EXPECT_EQ(opened.journal->stats().disk_bytes, disk_bytes(dir / "j"));
  }
  for (int i = 0; i < 30'000; ++i) {
    const auto seq = append_one(*opened.journal, 5);
    ASSERT_TRUE(seq);
    ASSERT_TRUE(ack(*opened.journal, {*seq}));
  }
  ASSERT_TRUE(opened.journal->sync(soon()));
  EXPECT_LE(disk_bytes(dir / "j"), 1U << 20);
  opened.journal.reset();
  const auto again = must_open(dir / "j");
  EXPECT_TRUE(again.contents.records.empty());
  EXPECT_TRUE(again.contents.damages.empty());
}

// One record that stays holds no more than itself, however much comes and goes beside it.
TEST(Journal, EmptiesSegmentsThatHoldLittle) {
  const TempDir dir;
  Options options;
  options.max_bytes = 1 << 20;
  options.segment_bytes = 32 << 10;
  options.idle_bytes = 8 << 10;
  auto opened = must_open(dir / "j", options);
  std::vector<std::uint64_t> kept;
  for (std::uint64_t i = 1; i <= 20'000; ++i) {
    const auto seq = append_one(*opened.journal, i, 200);
    ASSERT_TRUE(seq) << i << seq.error().message();
    if (i % 400 == 1) {
      kept.push_back(i);
    } else {
      ASSERT_TRUE(ack(*opened.journal, {*seq}));
    }
    if (i % 100 == 0) {
      ASSERT_TRUE(opened.journal->sync(soon()));
    }
    ASSERT_LE(opened.journal->stats().disk_bytes, options.max_bytes);
  }
  EXPECT_EQ(opened.journal->stats().records, kept.size());
  EXPECT_LE(disk_bytes(dir / "j"), 200'000U);
  EXPECT_EQ(opened.journal->stats().disk_bytes, disk_bytes(dir / "j"));
  opened.journal.reset();
  opened = must_open(dir / "j", options);
  EXPECT_EQ(orders(opened.contents.records), kept);
  EXPECT_TRUE(opened.contents.damages.empty());
}

// A disk that takes its time holds nobody up but who waits for it.
TEST(Journal, NothingWaitsForASyncButASync) {
  class SlowIo : public QuickIo {
   public:
    int fdatasync(int /*fd*/) override {
      base::MutexLock lock(mu_);
      in_ = true;
      changed_.notify_all();
      while (!open_ && std::chrono::steady_clock::now() < deadline_)
        (void)changed_.wait_until(mu_, deadline_);
      return 0;
    }
    bool wait_in() {
      base::MutexLock lock(mu_);
      while (!in_ && std::chrono::steady_clock::now() < deadline_) (void)changed_.wait_until(mu_, deadline_);
      return in_;
    }
    void open() {
      base::MutexLock lock(mu_);
      open_ = true;
      changed_.notify_all();
    }

   private:
    const std::chrono::steady_clock::time_point deadline_ = soon();
    base::Mutex mu_;
    base::CondVar changed_;
    bool in_ GUARDED_BY(mu_) = false;
    bool open_ GUARDED_BY(mu_) = false;
  } io;
  const TempDir dir;
  Options options;
  options.io = &io;
  auto opened = must_open(dir / "j", options);
  auto& journal = *opened.journal;
  ASSERT_TRUE(append_one(journal, 1));
  {
    std::jthread syncer([&] { EXPECT_TRUE(journal.sync(soon())); });
    EXPECT_TRUE(io.wait_in());
    EXPECT_TRUE(append_one(journal, 2));
    EXPECT_TRUE(ack(journal, {1}));
    EXPECT_EQ(journal.stats().records, 1U);
    EXPECT_TRUE(journal.needs_sync());
    const auto second = journal.sync(std::chrono::steady_clock::now());
    EXPECT_EQ(second ? 0 : second.error().as_errno(), ETIMEDOUT);
    io.open();
  }
  EXPECT_TRUE(journal.needs_sync()) << "what came meanwhile is another sync's";
  EXPECT_TRUE(journal.sync(soon()));
  EXPECT_FALSE(journal.needs_sync());
}

// Each start begins a file of its own; what stays in them is joined.
TEST(Journal, ManyStartsLeaveFewFiles) {
  const TempDir dir;
  QuickIo quick;
  Options options;
  options.io = &quick;
  std::vector<std::uint64_t> kept;
  for (std::uint64_t i = 1; i <= 200; ++i) {
    auto opened = must_open(dir / "j", options);
    ASSERT_TRUE(append_one(*opened.journal, i));
    kept.push_back(i);
    if (i % 2 == 0) {
      ASSERT_TRUE(opened.journal->sync(soon()));
    }
  }
  EXPECT_LT(files(dir / "j", "").size(), 60U);
  EXPECT_EQ(orders(Journal::list(dir / "j")->records), kept);
}

TEST(Journal, ManyThreads) {
  const TempDir dir;
  Options options;
  options.max_bytes = 4 << 20;
  options.segment_bytes = 128 << 10;
  auto opened = must_open(dir / "j", options);
  auto& journal = *opened.journal;
  std::atomic<std::uint64_t> left{0};
  {
    std::vector<std::jthread> threads;
    for (std::uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::vector<Seq> mine;
        for (std::uint64_t i = 0; i < 400; ++i) {
          const auto seq = append_one(journal, t * 1000 + i, 100 + i);
          ASSERT_TRUE(seq) << seq.error().message();
          mine.push_back(*seq);
          if (mine.size() < 10) continue;
          const Seq kept = mine.back();
          mine.pop_back();
          ASSERT_TRUE(journal.acknowledge(mine));
          mine.clear();
          left += kept != 0 ? 1 : 0;
        }
      });
    }
    threads.emplace_back([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        ASSERT_TRUE(journal.sync(soon()));
        (void)journal.stats();
        (void)journal.needs_sync();
      }
    });
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(journal.sync(soon()));
  }
  opened.journal.reset();
  opened = must_open(dir / "j", options);
  EXPECT_EQ(orders(opened.contents.records).size(), left.load());
  EXPECT_TRUE(opened.contents.damages.empty());
}

TEST(Journal, AnotherFormatIsNamed) {
  const TempDir dir;
  {
    auto opened = must_open(dir / "j");
    ASSERT_TRUE(append_one(*opened.journal, 1));
  }
  const auto name = files(dir / "j", "seg-").front();
  std::fstream file(dir / ("j/" + name), std::ios::in | std::ios::out | std::ios::binary);
  std::string bytes(journal::kFileHeaderBytes, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes[8] = 7;
  const std::uint64_t check = XXH3_64bits(bytes.data(), 40);
  std::memcpy(bytes.data() + 40, &check, sizeof(check));
  file.seekp(0);
  file << bytes;
  file.close();
  const auto opened = Journal::open(dir / "j");
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().as_errno(), ENOTSUP);
  EXPECT_NE(opened.error().context.find("format version 7, this program knows 1"), std::string::npos)
      << opened.error().context;
  EXPECT_EQ(files(dir / "j", "seg-").front(), name);
}

}  // namespace
}  // namespace nearbox::test
