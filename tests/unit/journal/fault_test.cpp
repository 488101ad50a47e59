// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <map>
#include <set>

#include "tests/unit/journal/journal_test_util.h"

// Every system call of the journal fails once, falls short, or is the last one the process made.
namespace nearbox::test {
namespace {

using journal::Journal;
using journal::Options;
using journal::Seq;

enum class Mode {
  kError,     // the call fails once
  kShort,     // it moves half of its bytes, once
  kShortEnd,  // and the call after it, and the one that would clean up, fail
  kDead,      // it and all later ones fail: the process ended before it
  kTornDead,  // the same, with half of its bytes written
};

// Counts the calls and interferes with the one that is due.
class FaultIo : public journal::Io {
 public:
  std::size_t fail_at = 0;  // counted from 1
  Mode mode = Mode::kError;
  int error = EIO;
  std::size_t calls = 0;
  std::map<std::string, int> kinds;
  bool fired = false;

  int mkdir(const char* path, mode_t m) override { return no("mkdir") ? -1 : Io::mkdir(path, m); }
  int open_dir(const char* path) override { return no("open_dir") ? -1 : Io::open_dir(path); }
  int openat(int dir, const char* name, int flags, mode_t m) override {
    return no("openat") ? -1 : Io::openat(dir, name, flags, m);
  }
  int close(int fd) override {
    const bool fails = no("close");
    const int rc = Io::close(fd);  // the number is free either way
    return fails ? -1 : rc;
  }
  int flock(int fd, int op) override { return no("flock") ? -1 : Io::flock(fd, op); }
  int fstat(int fd, struct stat* out) override { return no("fstat") ? -1 : Io::fstat(fd, out); }
  ssize_t pwritev(int fd, const iovec* iov, int count, off_t at) override {
    const bool before = fired;
    if (!no("pwritev", true)) {
      if (fired == before || mode == Mode::kError) return Io::pwritev(fd, iov, count, at);
      return half(fd, iov, count, at);
    }
    if (mode == Mode::kTornDead && !before) {
      (void)half(fd, iov, count, at);
      errno = error;
    }
    return -1;
  }
  ssize_t pread(int fd, void* out, std::size_t size, off_t at) override {
    const bool before = fired;
    if (no("pread", true)) return -1;
    const bool cut = fired != before && (mode == Mode::kShort || mode == Mode::kShortEnd);
    return Io::pread(fd, out, cut ? (size + 1) / 2 : size, at);
  }
  int ftruncate(int fd, off_t size) override { return no("ftruncate") ? -1 : Io::ftruncate(fd, size); }
  int fdatasync(int /*fd*/) override { return no("fdatasync") ? -1 : 0; }
  int fsync(int /*fd*/) override { return no("fsync") ? -1 : 0; }
  int renameat(int dir, const char* from, const char* to) override {
    return no("renameat") ? -1 : Io::renameat(dir, from, to);
  }
  int unlinkat(int dir, const char* name) override { return no("unlinkat") ? -1 : Io::unlinkat(dir, name); }
  DIR* fdopendir(int fd) override { return no("fdopendir") ? nullptr : Io::fdopendir(fd); }
  dirent* readdir(DIR* dir) override { return no("readdir") ? nullptr : Io::readdir(dir); }
  int closedir(DIR* dir) override {
    const bool fails = no("closedir");
    const int rc = Io::closedir(dir);
    return fails ? -1 : rc;
  }
  ssize_t getrandom(void* out, std::size_t size) override {
    return no("getrandom") ? -1 : Io::getrandom(out, size);
  }

 private:
  bool no(const char* kind, bool moves_bytes = false) {
    ++calls;
    ++kinds[kind];
    errno = error;
    const bool dead = mode == Mode::kDead || mode == Mode::kTornDead;
    if (fired) {
      if (dead) return true;
      return mode == Mode::kShortEnd && rest_-- > 0;
    }
    if (calls != fail_at) {
      errno = 0;
      return false;
    }
    fired = true;
    if (dead || mode == Mode::kError) return true;
    if (mode == Mode::kShortEnd) rest_ = 2;
    return !moves_bytes;
  }
  static ssize_t half(int fd, const iovec* iov, int count, off_t at) {
    std::size_t total = 0;
    for (int i = 0; i < count; ++i) total += iov[i].iov_len;
    total /= 2;
    std::vector<iovec> part;
    std::size_t left = total;
    for (int i = 0; i < count && left > 0; ++i) {
      part.push_back({iov[i].iov_base, std::min(left, iov[i].iov_len)});
      left -= part.back().iov_len;
    }
    if (part.empty()) return 0;
    return ::pwritev(fd, part.data(), static_cast<int>(part.size()), at);
  }
  int rest_ = 0;
};

// What the journal told its user, and therefore owes.
class User {
 public:
  User(std::string dir, FaultIo& io) : dir_(std::move(dir)) {
    options_.max_bytes = 96 << 10;
    options_.segment_bytes = 8 << 10;
    options_.idle_bytes = 2 << 10;
    options_.io = &io;
  }

  // False when it could not be opened, even at a second attempt.
  bool open() {
    journal_.reset();
    for (int attempt = 0; attempt < 2 && !journal_; ++attempt) {
      auto opened = Journal::open(dir_, options_);
      if (opened) {
        check(opened->contents);
        journal_ = std::move(opened->journal);
      }
    }
    return journal_ != nullptr;
  }
  void append(std::size_t count, std::size_t size) {
    std::vector<std::unique_ptr<Sample>> samples;
    std::vector<journal::Record> records;
    for (std::size_t i = 0; i < count; ++i) {
      samples.push_back(std::make_unique<Sample>(++number_, size));
      records.push_back(samples.back()->record());
    }
    const auto first = journal_->append(records);
    for (std::size_t i = 0; first && i < count; ++i) {
      EXPECT_GT(*first + i, newest_);
      newest_ = *first + i;
      live_[newest_] = number_ - count + 1 + i;
    }
    bounded();
  }
  // Acknowledges those of what is live for which `which` says so.
  void ack(const std::function<bool(std::uint64_t)>& which) {
    std::vector<Seq> seqs;
    for (const auto& [seq, number] : live_) {
      if (which(number)) seqs.push_back(seq);
    }
    const bool ok = journal_->acknowledge(seqs).ok();
    for (const Seq seq : seqs) {
      if (!ok) perhaps_[seq] = live_[seq];
      live_.erase(seq);
    }
    // What could not be written is written with what comes after it.
    if (ok && !seqs.empty()) perhaps_.clear();
    bounded();
  }
  void sync() {
    if (journal_->sync(soon())) perhaps_.clear();
    EXPECT_LE(disk_bytes(dir_), journal_->stats().disk_bytes) << "what it counts is what there is, or more";
    bounded();
  }
  void discard() { (void)journal_->discard_aside(); }
  void close() { journal_.reset(); }

  void check(const journal::Contents& contents) {
    Seq last = 0;
    std::set<Seq> got;
    for (const auto& record : contents.records) {
      EXPECT_TRUE(is_sample(record));
      EXPECT_GT(record.seq, last) << "in order, and none twice";
      last = record.seq;
      got.insert(record.seq);
      const auto it = live_.find(record.seq);
      if (it == live_.end()) {
        EXPECT_TRUE(perhaps_.contains(record.seq))
            << "replayed though acknowledged or never confirmed: " << record.seq;
      } else {
        EXPECT_EQ(record.order, it->second);
      }
    }
    for (const auto& [seq, number] : live_)
      EXPECT_TRUE(got.contains(seq)) << "lost " << number << " seq " << seq;
    EXPECT_TRUE(contents.damages.empty()) << contents.damages[0].message();
    // What it said just now is what counts from here on.
    for (const auto& [seq, number] : perhaps_) {
      if (got.contains(seq)) live_[seq] = number;
    }
    perhaps_.clear();
  }
  void check_with_sound_disk() {
    close();
    options_.io = nullptr;
    for (int i = 0; i < 2; ++i) {
      ASSERT_TRUE(open());
      EXPECT_EQ(journal_->stats().disk_bytes, disk_bytes(dir_));
    }
  }

 private:
  void bounded() const { EXPECT_LE(journal_->stats().disk_bytes, options_.max_bytes); }

  const std::string dir_;
  Options options_;
  std::unique_ptr<Journal> journal_;
  std::map<Seq, std::uint64_t> live_;     // confirmed and not acknowledged, with its number
  std::map<Seq, std::uint64_t> perhaps_;  // acknowledging them failed
  std::uint64_t number_ = 0;
  Seq newest_ = 0;
};

// Goes through everything a journal does: new files, segments that end, leave and are emptied, snapshots.
void story(User& user) {
  if (!user.open()) return;
  for (int i = 0; i < 12; ++i) user.append(1, 300);
  user.append(5, 700);
  user.ack([](auto n) { return n <= 4; });
  user.sync();
  user.append(1, 5000);
  user.ack([](auto n) { return n == 9; });
  user.append(3, 1500);
  user.ack([](auto n) { return n > 4 && n % 5 != 0; });
  user.sync();
  for (int round = 0; round < 6; ++round) {
    user.append(8, 600);
    user.ack([](auto n) { return n % 7 != 0; });
  }
  user.sync();
  user.sync();
  if (!user.open()) return;
  user.append(2, 100);
  for (int i = 0; i < 60; ++i) {
    user.append(1, 20);
    user.ack([](auto n) { return n % 7 != 0; });
  }
  user.sync();
  user.append(2, 100);
  user.ack([](auto n) { return n % 11 != 0; });
  user.sync();
  user.append(1, 100);
}

class JournalFault : public ::testing::TestWithParam<std::tuple<Mode, int>> {};

TEST_P(JournalFault, EachCallOnce) {
  std::size_t calls = 0;
  {
    const TempDir dir;
    FaultIo io;
    User user(dir / "a/j", io);
    story(user);
    calls = io.calls;
    user.check_with_sound_disk();
    ASSERT_FALSE(HasFailure());
    // The story meets every call there is; putting aside has its own test below.
    for (const char* kind :
         {"mkdir", "open_dir", "openat", "close", "flock", "fstat", "pwritev", "pread", "fdatasync", "fsync",
          "unlinkat", "fdopendir", "readdir", "closedir", "getrandom"}) {
      EXPECT_GT(io.kinds[kind], 0) << kind;
    }
    EXPECT_GT(calls, 200U);
  }
  const auto [mode, error] = GetParam();
  for (std::size_t at = 1; at <= calls; ++at) {
    SCOPED_TRACE("call " + std::to_string(at));
    const TempDir dir;
    FaultIo io;
    io.fail_at = at;
    io.mode = mode;
    io.error = error;
    User user(dir / "a/j", io);
    story(user);
    user.check_with_sound_disk();
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(All, JournalFault,
                         ::testing::Values(std::tuple(Mode::kError, EIO), std::tuple(Mode::kError, ENOSPC),
                                           std::tuple(Mode::kError, EINTR), std::tuple(Mode::kShort, EIO),
                                           std::tuple(Mode::kShortEnd, ENOSPC), std::tuple(Mode::kDead, EIO),
                                           std::tuple(Mode::kTornDead, EIO)));

// A full disk for as long as somebody else fills it: nothing is lost, and it goes on afterwards.
TEST(JournalFaults, AFullDisk) {
  class FullIo : public QuickIo {
   public:
    ssize_t pwritev(int fd, const iovec* iov, int count, off_t at) override {
      if (!full) return Io::pwritev(fd, iov, count, at);
      errno = ENOSPC;
      return -1;
    }
    bool full = false;
  } io;
  const TempDir dir;
  Options options;
  options.io = &io;
  options.segment_bytes = 8 << 10;
  auto opened = must_open(dir / "j", options);
  auto& journal = *opened.journal;
  std::vector<Seq> seqs;
  for (std::uint64_t i = 1; i <= 100; ++i) {
    const auto seq = append_one(journal, i, 500);
    ASSERT_TRUE(seq);
    seqs.push_back(*seq);
  }
  io.full = true;
  EXPECT_EQ(append_one(journal, 101, 500).error().as_errno(), ENOSPC);
  EXPECT_FALSE(ack(journal, {1, 2, 3}));
  EXPECT_EQ(orders(Journal::list(dir / "j")->records).size(), 100U);
  // With everything acknowledged the journal gives its space back although it cannot write that down.
  EXPECT_FALSE(journal.acknowledge(seqs));
  EXPECT_FALSE(journal.sync(soon()));
  EXPECT_TRUE(files(dir / "j", "seg-").empty());
  EXPECT_TRUE(journal.needs_sync());
  EXPECT_FALSE(append_one(journal, 102));
  // The first segment that is made again comes after a record of what was acknowledged: else those that
  // were removed would be missed.
  io.full = false;
  ASSERT_TRUE(append_one(journal, 103));
  fs::copy(dir / "j", dir / "killed");
  const auto killed = Journal::list(dir / "killed");
  ASSERT_TRUE(killed);
  EXPECT_EQ(orders(killed->records), (std::vector<std::uint64_t>{103}));
  EXPECT_TRUE(killed->damages.empty());
  EXPECT_TRUE(journal.sync(soon()));
  EXPECT_FALSE(journal.needs_sync());
  opened.journal.reset();
  opened = must_open(dir / "j", options);
  EXPECT_EQ(orders(opened.contents.records), (std::vector<std::uint64_t>{103}));
  EXPECT_TRUE(opened.contents.damages.empty());
}

// A write that got half way and cannot be cut off again: what follows goes elsewhere, and is no damage.
TEST(JournalFaults, ATornWriteThatCannotBeCut) {
  class TearingIo : public QuickIo {
   public:
    ssize_t pwritev(int fd, const iovec* iov, int count, off_t at) override {
      if (!tear) return Io::pwritev(fd, iov, count, at);
      if (std::exchange(torn_, true)) {
        errno = EIO;
        return -1;
      }
      return ::pwrite(fd, iov[0].iov_base, iov[0].iov_len / 2, at);
    }
    int ftruncate(int fd, off_t size) override {
      errno = EIO;
      return tear ? -1 : Io::ftruncate(fd, size);
    }
    bool tear = false;

   private:
    bool torn_ = false;
  } io;
  const TempDir dir;
  Options options;
  options.io = &io;
  auto opened = must_open(dir / "j", options);
  ASSERT_TRUE(append_one(*opened.journal, 1));
  io.tear = true;
  EXPECT_FALSE(append_one(*opened.journal, 2, 5000));
  io.tear = false;
  ASSERT_TRUE(append_one(*opened.journal, 3));
  ASSERT_TRUE(append_one(*opened.journal, 4));
  EXPECT_GE(opened.journal->stats().disk_bytes, disk_bytes(dir / "j"));
  opened.journal.reset();
  opened = must_open(dir / "j", options);
  EXPECT_EQ(orders(opened.contents.records), (std::vector<std::uint64_t>{1, 3, 4}));
  EXPECT_TRUE(opened.contents.damages.empty());
  EXPECT_GT(opened.contents.torn_bytes, 1000U);
}

// Putting a damaged file aside, interrupted at each call: the next one finishes it, and no record is in
// neither place.
TEST(JournalFaults, PuttingAside) {
  const TempDir dir;
  static QuickIo quick;
  Options options;
  options.segment_bytes = 4096;
  options.io = &quick;
  {
    auto opened = must_open(dir / "j", options);
    for (std::uint64_t i = 1; i <= 50; ++i) ASSERT_TRUE(append_one(*opened.journal, i, 100));
    ASSERT_TRUE(ack(*opened.journal, {2, 15, 20, 40}));
  }
  const auto damaged = dir / ("j/" + files(dir / "j", "seg-")[1]);
  std::fstream file(damaged, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(1500);
  file << "nonsense";
  file.close();
  const auto whole = Journal::list(dir / "j");
  ASSERT_TRUE(whole);
  ASSERT_GT(whole->records.size(), 5U);
  ASSERT_GT(whole->aside.size(), 5U);
  ASSERT_GE(whole->lost, 1U);
  std::size_t calls = 0;
  for (std::size_t at = 0; at <= calls; ++at) {
    for (const Mode mode : {Mode::kError, Mode::kDead, Mode::kTornDead}) {
      SCOPED_TRACE("call " + std::to_string(at) + " mode " + std::to_string(static_cast<int>(mode)));
      fs::remove_all(dir / "c");
      fs::copy(dir / "j", dir / "c");
      FaultIo io;
      io.fail_at = at;
      io.mode = mode;
      options.io = &io;
      const auto first = Journal::open(dir / "c", options);
      if (at == 0) {
        calls = io.calls;
        EXPECT_GT(io.kinds["renameat"], 2);
      }
      options.io = &quick;
      if (first) {
        EXPECT_EQ(orders(first->contents.records), orders(whole->records));
      }
      const auto aside = Journal::list(dir / "c");
      ASSERT_TRUE(aside);
      EXPECT_EQ(orders(aside->records), orders(whole->records));
      EXPECT_EQ(orders(aside->aside), orders(whole->aside));
      if (first) continue;  // its owner still has it
      auto second = must_open(dir / "c", options);
      EXPECT_EQ(orders(second.contents.records), orders(whole->records));
      EXPECT_EQ(orders(second.contents.aside), orders(whole->aside));
      ASSERT_FALSE(HasFailure());
    }
  }
}

}  // namespace
}  // namespace nearbox::test
