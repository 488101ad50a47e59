// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "fs/journal/format.h"
#include "tests/unit/journal/journal_test_util.h"

// Files that are not as they were written: nothing wrong is replayed, and nothing is lost without a word.
namespace nearbox::test {
namespace {

using journal::Contents;
using journal::Journal;
using journal::Options;
using journal::Seq;

Options small() {
  static QuickIo quick;
  Options options;
  options.max_bytes = 1 << 20;
  options.segment_bytes = 4096;
  options.idle_bytes = 1024;
  options.io = &quick;
  return options;
}

// 60 records of some 250 bytes in three segments, every third acknowledged, one segment emptied already.
std::vector<std::uint64_t> fill(const std::string& dir) {
  auto opened = must_open(dir, small());
  std::vector<std::uint64_t> left;
  for (std::uint64_t i = 1; i <= 60; ++i) {
    EXPECT_TRUE(append_one(*opened.journal, i, 20));
    if (i == 18) {
      std::vector<Seq> first(15);
      for (Seq seq = 1; seq <= 15; ++seq) first[seq - 1] = seq;
      EXPECT_TRUE(opened.journal->acknowledge(first));
      EXPECT_TRUE(opened.journal->sync(soon()));
    }
    if (i > 18 && i % 3 == 0) {
      EXPECT_TRUE(ack(*opened.journal, {i}));
    } else if (i > 15) {
      left.push_back(i);
    }
  }
  return left;
}

void copy_dir(const std::string& from, const std::string& to) {
  fs::remove_all(to);
  fs::copy(from, to);
}

std::string read_all(const std::string& name) {
  std::ifstream in(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
void write_all(const std::string& name, const std::string& bytes) {
  std::ofstream(name, std::ios::binary | std::ios::trunc) << bytes;
}

// What holds for whatever was done to the files.
void expect_sound(const Contents& contents, const std::vector<std::uint64_t>& left) {
  std::set<std::uint64_t> got;
  Seq last = 0;
  for (const auto* list : {&contents.records, &contents.aside}) {
    for (const auto& record : *list) {
      EXPECT_TRUE(is_sample(record));
      EXPECT_EQ(record.seq, record.order);
      EXPECT_GT(record.seq, last) << "order";
      last = record.seq;
      got.insert(record.order);
    }
  }
  const std::set<std::uint64_t> want(left.begin(), left.end());
  if (got == want && contents.aside.empty()) return;
  EXPECT_FALSE(contents.damages.empty()) << "lost or repeated without a word";
  if (!contents.aside.empty()) {
    EXPECT_GT(contents.lost, 0U);
  }
}

// Opening it, and opening it once more, when the damage was dealt with.
void check(const std::string& dir, const std::vector<std::uint64_t>& left) {
  const auto listed = Journal::list(dir);
  ASSERT_TRUE(listed) << listed.error().message();
  auto opened = must_open(dir, small());
  ASSERT_NE(opened.journal, nullptr);
  expect_sound(opened.contents, left);
  EXPECT_EQ(orders(listed->records), orders(opened.contents.records));
  EXPECT_EQ(orders(listed->aside), orders(opened.contents.aside));
  EXPECT_EQ(opened.journal->stats().disk_bytes, disk_bytes(dir));
  for (const auto& damage : opened.contents.damages) {
    EXPECT_FALSE(damage.message().empty());
    if (damage.kept_as.empty()) continue;
    EXPECT_TRUE(fs::exists(dir + "/" + damage.kept_as)) << damage.kept_as;
  }
  const auto first = orders(opened.contents.records);
  const auto aside = orders(opened.contents.aside);
  const auto next = append_one(*opened.journal, 1000);
  ASSERT_TRUE(next);
  EXPECT_GT(*next, 30U) << "numbers go on";
  ASSERT_TRUE(ack(*opened.journal, {*next}));
  ASSERT_TRUE(opened.journal->sync(soon()));
  opened.journal.reset();
  opened = must_open(dir, small());
  EXPECT_EQ(orders(opened.contents.records), first);
  EXPECT_EQ(orders(opened.contents.aside), aside) << "what is kept aside is told every time";
  EXPECT_TRUE(opened.contents.damages.empty()) << opened.contents.damages[0].message();
  ASSERT_TRUE(opened.journal->discard_aside());
  EXPECT_TRUE(files(dir, "damaged-").empty());
  EXPECT_EQ(opened.journal->stats().disk_bytes, disk_bytes(dir));
}

class JournalDamage : public ::testing::Test {
 protected:
  void SetUp() override {
    left_ = fill(dir_ / "j");
    ASSERT_GE(files(dir_ / "j", "seg-").size(), 3U);
    ASSERT_EQ(files(dir_ / "j", "ack-").size(), 1U);
  }
  std::string copy() {
    copy_dir(dir_ / "j", dir_ / "c");
    return dir_ / "c";
  }
  TempDir dir_;
  std::vector<std::uint64_t> left_;
};

TEST_F(JournalDamage, NoneIsNone) {
  const auto dir = copy();
  const auto contents = Journal::list(dir);
  ASSERT_TRUE(contents);
  EXPECT_EQ(orders(contents->records), left_);
  check(dir, left_);
}

TEST_F(JournalDamage, AFlippedBitAnywhere) {
  std::mt19937_64 rng(seed());
  for (const auto& name : files(dir_ / "j", "")) {
    const auto bytes = read_all(dir_ / ("j/" + name));
    for (std::size_t at = 0; at < bytes.size(); at += 1 + rng() % 23) {
      SCOPED_TRACE(name + " at " + std::to_string(at));
      const auto dir = copy();
      auto changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ (1 << rng() % 8));
      write_all(dir + "/" + name, changed);
      check(dir, left_);
      if (HasFailure()) return;
    }
  }
}

TEST_F(JournalDamage, AFileThatIsGoneOrCutOrZero) {
  for (const auto& name : files(dir_ / "j", "")) {
    if (name == "lock") continue;
    SCOPED_TRACE(name);
    auto dir = copy();
    fs::remove(dir + "/" + name);
    check(dir, left_);
    const auto bytes = read_all(dir_ / ("j/" + name));
    for (std::size_t size = 0; size < bytes.size(); size += 97) {
      SCOPED_TRACE("cut to " + std::to_string(size));
      dir = copy();
      // The end of the last segment and of the acknowledgements cannot be told from a write that never
      // returned; anything else can.
      const bool last = name == files(dir, "seg-").back() || name.starts_with("ack-");
      fs::resize_file(dir + "/" + name, size);
      if (last) {
        const auto contents = Journal::list(dir);
        ASSERT_TRUE(contents);
        (void)orders(contents->records);
      } else {
        check(dir, left_);
      }
      dir = copy();
      auto zeroed = bytes;
      std::fill(zeroed.begin() + static_cast<std::ptrdiff_t>(size), zeroed.end(), '\0');
      write_all(dir + "/" + name, zeroed);
      if (!last) check(dir, left_);
      if (HasFailure()) return;
    }
  }
}

TEST_F(JournalDamage, TheMiddleIsReportedAndTheRestKeptAside) {
  const auto dir = copy();
  const auto segments = files(dir, "seg-");
  auto bytes = read_all(dir + "/" + segments[1]);
  const auto whole = Journal::list(dir);
  ASSERT_TRUE(whole);
  bytes[bytes.size() / 2] ^= 1;
  write_all(dir + "/" + segments[1], bytes);
  auto opened = must_open(dir, small());
  ASSERT_EQ(opened.contents.damages.size(), 1U);
  const auto& damage = opened.contents.damages[0];
  EXPECT_EQ(damage.file, segments[1]);
  EXPECT_GT(damage.offset, bytes.size() / 4);
  EXPECT_LE(damage.offset, bytes.size() / 2);
  EXPECT_TRUE(damage.kept_as.starts_with("damaged-")) << damage.kept_as;
  EXPECT_EQ(read_all(dir + "/" + damage.kept_as), bytes) << "as it was";
  EXPECT_LE(damage.lost, 1U);
  if (damage.lost == 1) {
    EXPECT_NE(damage.message().find("1 records are missing"), std::string::npos) << damage.message();
    EXPECT_EQ(opened.contents.records.size() + opened.contents.aside.size() + 1, left_.size());
    EXPECT_EQ(orders(whole->records), left_);
    EXPECT_GT(opened.contents.aside.size(), 3U);
    EXPECT_GT(opened.contents.records.size(), 1U);
  }
}

// With the checks off, a flipped bit is replayed as if it were right.
TEST_F(JournalDamage, ChecksOff) {
  const auto dir = copy();
  const auto name = dir + "/" + files(dir, "seg-").back();
  auto bytes = read_all(name);
  bytes[bytes.size() - 60] ^= 1;
  write_all(name, bytes);
  const auto noticed = [&] {
    const auto contents = Journal::list(dir);
    EXPECT_TRUE(contents);
    bool right = true;
    for (const auto& record : contents->records) right = right && is_sample(record);
    return right && !contents->damages.empty();
  };
  EXPECT_TRUE(noticed());
  const Faults faults("journal.no_check");
  EXPECT_FALSE(noticed());
}

TEST_F(JournalDamage, BytesOfAnotherSegmentAreNoRecords) {
  const auto dir = copy();
  const auto segments = files(dir, "seg-");
  // As where a file system shows old blocks behind the end of a file.
  const auto old = read_all(dir + "/" + segments[0]);
  auto bytes = read_all(dir + "/" + segments.back());
  bytes += old.substr(journal::kFileHeaderBytes);
  write_all(dir + "/" + segments.back(), bytes);
  const auto contents = Journal::list(dir);
  ASSERT_TRUE(contents);
  EXPECT_EQ(orders(contents->records), left_);
  EXPECT_EQ(contents->damages.size(), 1U);
  check(dir, left_);
}

}  // namespace
}  // namespace nearbox::test
