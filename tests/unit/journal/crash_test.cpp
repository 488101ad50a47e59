// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <fcntl.h>
#include <map>
#include <poll.h>
#include <set>
#include <sys/wait.h>

#include "tests/unit/journal/journal_test_util.h"

// A process that appends and acknowledges is killed; what it had said to have done is compared with what
// is replayed.
namespace nearbox::test {
namespace {

using journal::Journal;
using journal::Options;
using journal::Seq;

// One message of the child, written to the pipe in one piece.
struct Note {
  enum Kind : std::uint64_t { kReplayed, kReady, kAppended, kAcking, kAcked, kFailed } kind;
  Seq seq;
  std::uint64_t order;
};

// Ends the process in the middle of a write, or at another call, when `left` calls have been made.
class DyingIo : public QuickIo {
 public:
  explicit DyingIo(std::uint64_t left) : left_(left) {}
  ssize_t pwritev(int fd, const iovec* iov, int count, off_t at) override {
    if (left_-- == 1) {
      if (iov[0].iov_len > 1) (void)::pwrite(fd, iov[0].iov_base, iov[0].iov_len / 2, at);
      ::kill(::getpid(), SIGKILL);
    }
    return Io::pwritev(fd, iov, count, at);
  }
  int fdatasync(int fd) override { return die(), QuickIo::fdatasync(fd); }
  int fsync(int fd) override { return die(), QuickIo::fsync(fd); }
  int unlinkat(int dir, const char* name) override { return die(), Io::unlinkat(dir, name); }
  int openat(int dir, const char* name, int flags, mode_t m) override {
    return die(), Io::openat(dir, name, flags, m);
  }

 private:
  void die() {
    if (left_-- == 1) ::kill(::getpid(), SIGKILL);
  }
  std::uint64_t left_;
};

Options small() {
  Options options;
  options.max_bytes = 512 << 10;
  options.segment_bytes = 16 << 10;
  options.idle_bytes = 2 << 10;
  return options;
}

[[noreturn]] void child(const std::string& dir, int pipe, std::uint64_t seed, std::uint64_t calls) {
  const auto tell = [&](Note::Kind kind, Seq seq = 0, std::uint64_t order = 0) {
    const Note note{kind, seq, order};
    if (::write(pipe, &note, sizeof(note)) != sizeof(note)) ::_exit(2);
  };
  DyingIo io(calls);
  auto options = small();
  options.io = &io;
  auto opened = Journal::open(dir, options);
  if (!opened || !opened->contents.damages.empty()) {
    tell(Note::kFailed);
    ::_exit(1);
  }
  std::vector<Seq> live;
  std::uint64_t number = 0;
  for (const auto& record : opened->contents.records) {
    tell(is_sample(record) ? Note::kReplayed : Note::kFailed, record.seq, record.order);
    live.push_back(record.seq);
    number = std::max(number, record.order);
  }
  tell(Note::kReady);
  std::mt19937_64 rng(seed);
  number += 1000 * (1 + rng() % 1000);
  for (;;) {
    const auto what = rng() % 20;
    if (what < 12) {
      const std::size_t count = rng() % 4 == 0 ? 1 + rng() % 20 : 1;
      std::vector<std::unique_ptr<Sample>> samples;
      std::vector<journal::Record> records;
      for (std::size_t i = 0; i < count; ++i) {
        samples.push_back(std::make_unique<Sample>(++number, rng() % 10 == 0 ? rng() % 4000 : rng() % 200));
        records.push_back(samples.back()->record());
      }
      const auto first = opened->journal->append(records);
      for (std::size_t i = 0; first && i < count; ++i) {
        live.push_back(*first + i);
        tell(Note::kAppended, *first + i, number - count + 1 + i);
      }
    } else if (what < 19) {
      std::vector<Seq> seqs;
      for (std::size_t i = rng() % 30; i > 0 && !live.empty(); --i) {
        const auto at = rng() % live.size();
        seqs.push_back(live[at]);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
      }
      for (const Seq seq : seqs) tell(Note::kAcking, seq);
      if (!opened->journal->acknowledge(seqs)) tell(Note::kFailed);
      for (const Seq seq : seqs) tell(Note::kAcked, seq);
    } else if (!opened->journal->sync(soon())) {
      tell(Note::kFailed);
    }
  }
}

class JournalCrash : public ::testing::Test {
 protected:
  // One life of the child: it ends by its own hand after `calls`, or is killed after `notes`.
  void life(std::uint64_t seed, std::uint64_t calls, std::size_t notes) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      ::close(ends[0]);
      child(dir_ / "j", ends[1], seed, calls);
    }
    ::close(ends[1]);
    std::map<Seq, std::uint64_t> replayed;
    bool ready = false;
    Note note{};
    for (std::size_t count = 0; read_note(ends[0], note); ++count) {
      take(note, replayed, ready);
      if (count == notes) ::kill(pid, SIGKILL);
    }
    ::close(ends[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "status " << status;
  }

  static bool read_note(int fd, Note& note) {
    pollfd wait{fd, POLLIN, 0};
    if (::poll(&wait, 1, 30'000) != 1) {
      ADD_FAILURE() << "the child says nothing";
      return false;
    }
    return ::read(fd, &note, sizeof(note)) == static_cast<ssize_t>(sizeof(note));
  }

  void take(const Note& note, std::map<Seq, std::uint64_t>& replayed, bool& ready) {
    switch (note.kind) {
      case Note::kReplayed:
        if (!replayed.empty()) {
          EXPECT_GT(note.seq, replayed.rbegin()->first) << "order";
        }
        replayed[note.seq] = note.order;
        break;
      case Note::kReady:
        ready = true;
        compare(replayed);
        break;
      case Note::kAppended:
        live_[note.seq] = note.order;
        last_ = std::max(last_, note.seq);
        break;
      case Note::kAcking:
        perhaps_[note.seq] = live_[note.seq];
        live_.erase(note.seq);
        break;
      case Note::kAcked:
        perhaps_.erase(note.seq);
        break;
      case Note::kFailed:
        ADD_FAILURE() << "the child failed" << (ready ? "" : " to open");
        break;
    }
  }

  // The last append may have been done and not yet told: that one alone, or its batch, is news.
  void compare(const std::map<Seq, std::uint64_t>& replayed) {
    ++compared_;
    for (const auto& [seq, order] : live_) {
      const auto it = replayed.find(seq);
      ASSERT_TRUE(it != replayed.end()) << "lost " << seq;
      EXPECT_EQ(it->second, order);
    }
    for (const auto& [seq, order] : replayed) {
      if (live_.contains(seq)) continue;
      EXPECT_TRUE(perhaps_.contains(seq) || seq > last_) << "replayed though acknowledged: " << seq;
    }
    live_ = replayed;
    if (!replayed.empty()) last_ = std::max(last_, replayed.rbegin()->first);
    perhaps_.clear();
  }

  TempDir dir_;
  std::map<Seq, std::uint64_t> live_;
  std::map<Seq, std::uint64_t> perhaps_;
  Seq last_ = 0;
  int compared_ = 0;
};

TEST_F(JournalCrash, KilledAtRandomPoints) {
  SCOPED_TRACE("seed " + std::to_string(seed()));
  std::mt19937_64 rng(seed());
  const char* const given = std::getenv("NEARBOX_CRASH_CYCLES");
  const int cycles = given == nullptr ? 80 : std::atoi(given);
  for (int cycle = 0; cycle < cycles; ++cycle) {
    SCOPED_TRACE("cycle " + std::to_string(cycle));
    const bool own = rng() % 2 == 0;
    // A bound on its notes too: a journal that is full of what is never acknowledged says no more.
    life(rng(), own ? 1 + rng() % (cycle % 4 == 0 ? 30 : 1500) : ~0ULL, rng() % 3000);
    if (HasFailure()) return;
  }
  EXPECT_GT(compared_, cycles / 2);
}

}  // namespace
}  // namespace nearbox::test
