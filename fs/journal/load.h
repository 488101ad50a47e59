// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/base/result.h"
#include "fs/journal/format.h"
#include "fs/journal/io.h"
#include "fs/journal/journal.h"

// Reading a journal's directory and judging what it holds, without changing anything.
namespace nearbox::journal {

// Names of files. Index and number are 16 hexadecimal digits, so that names sort as numbers do.
std::string segment_name(std::uint64_t index);
std::string acks_name(std::uint64_t index);
// What became of a file that was put aside: its index, and the first number in it that is not replayed.
std::string damaged_name(std::uint64_t index, Seq from);
inline constexpr const char* kLockName = "lock";

// A set of numbers as ranges that neither touch nor overlap, in order.
class SeqSet {
 public:
  struct Span {
    Seq first, end;
  };
  void add(Seq first, Seq end) { spans_.push_back({first, end}); }
  void settle();  // after the last add(): sorts and joins
  bool contains(Seq seq) const;
  // What of [first, end) is not in the set.
  std::vector<Span> gaps(Seq first, Seq end) const;
  Seq end() const { return spans_.empty() ? 0 : spans_.back().end; }

 private:
  std::vector<Span> spans_;
};

struct LoadedFile {
  std::uint64_t index = 0;
  std::string name;
  std::uint64_t size = 0;
  HeaderState state = HeaderState::kTorn;
  FileHeader header;
  std::size_t end = 0;  // behind its last sound record
  Tail tail = Tail::kClean;
  std::size_t live = 0;  // records in it that are not acknowledged, each counted in one file alone
  // Damage that may have taken a record whose fate is not known.
  bool harmful = false;
};

struct LoadedRecord {
  Stored stored;
  std::size_t file = 0;  // in Loaded::segments
  std::size_t offset = 0;
  std::size_t bytes = 0;
};

struct AsideFile {
  std::string name;
  std::uint64_t size = 0;
};

struct Loaded {
  std::vector<LoadedFile> segments;         // by index
  std::vector<LoadedFile> acks;             // by index
  std::optional<std::size_t> current_acks;  // the newest with a sound snapshot
  bool acks_uncertain = false;              // some acknowledgements cannot be read
  SeqSet acknowledged;
  std::map<Seq, LoadedRecord> records;  // not acknowledged
  Seq next_seq = 1;
  std::uint64_t next_index = 1;
  Seq missing = 0;  // the first number that is lost, or 0
  std::vector<Damage> damages;
  std::uint64_t lost = 0;
  std::uint64_t torn_bytes = 0;
  std::uint64_t disk_bytes = 0;  // of all files
  std::vector<AsideFile> aside;
};

base::Result<Loaded> load(Io& io, int dir_fd, const std::string& dir);
// The records of files that were put aside, in order.
base::Result<std::vector<Stored>> load_aside(Io& io, int dir_fd, const std::vector<AsideFile>& files);
// Opens the directory, for reading its names too.
base::Result<IoFd> open_dir(Io& io, const std::string& dir);

}  // namespace nearbox::journal
