// SPDX-License-Identifier: Apache-2.0
#include "fs/journal/load.h"

#include <algorithm>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <fcntl.h>

#include "client/base/fault.h"

namespace nearbox::journal {
namespace {

constexpr std::string_view kAcksPrefix = "ack-";
constexpr std::uint64_t kMaxFile = 2 * kMaxBytes;  // more in one file was never written by us

std::string name_of(const char* prefix, std::uint64_t index) {
  char text[64];
  std::snprintf(text, sizeof(text), "%s-%016" PRIx64, prefix, index);
  return text;
}

// The number behind `prefix` in `name`, of 16 digits and no more than that.
std::optional<std::uint64_t> index_in(std::string_view name, std::string_view prefix) {
  constexpr std::size_t kDigits = 16;
  if (!name.starts_with(prefix) || name.size() < prefix.size() + kDigits) return std::nullopt;
  const char* const at = name.data() + prefix.size();
  std::uint64_t value = 0;
  const auto read = std::from_chars(at, at + kDigits, value, 16);
  if (read.ec != std::errc() || read.ptr != at + kDigits) return std::nullopt;
  return value;
}
std::optional<std::uint64_t> whole_index(std::string_view name, std::string_view prefix) {
  return name.size() == prefix.size() + 16 ? index_in(name, prefix) : std::nullopt;
}
// The number in damaged-INDEX-from-SEQ.
std::optional<Seq> damaged_from(std::string_view name) {
  constexpr std::string_view kPrefix = "damaged-";
  if (!index_in(name, kPrefix)) return std::nullopt;
  return whole_index(name.substr(kPrefix.size() + 16), "-from-");
}

base::Result<std::vector<std::string>> names_in(Io& io, int dir_fd) {
  IoFd fd(io, io.openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
  if (!fd) return base::last_errno("open the directory");
  DIR* const dir = io.fdopendir(fd.get());
  if (dir == nullptr) return base::last_errno("fdopendir");
  (void)fd.release();
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = io.readdir(dir)) names.emplace_back(entry->d_name);
  const int error = errno;
  (void)io.closedir(dir);
  if (error != 0) return base::errno_error(error, "readdir");
  std::sort(names.begin(), names.end());
  return names;
}

// A whole file; nothing when it is gone.
base::Result<std::optional<wire::Bytes>> read_file(Io& io, int dir_fd, const std::string& name) {
  const IoFd fd(io, io.openat(dir_fd, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0));
  if (!fd && errno == ENOENT) return std::optional<wire::Bytes>();
  if (!fd) return base::last_errno("open " + name);
  struct stat st {};
  if (io.fstat(fd.get(), &st) != 0) return base::last_errno("stat " + name);
  if (!S_ISREG(st.st_mode)) return base::errno_error(EINVAL, name + " is no file");
  const auto size = static_cast<std::uint64_t>(st.st_size);
  if (size > kMaxFile) return base::errno_error(EFBIG, name);
  wire::Bytes out(static_cast<std::size_t>(size));
  std::size_t at = 0;
  while (at < out.size()) {
    const ssize_t n = io.pread(fd.get(), out.data() + at, out.size() - at, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read " + name);
    if (n == 0) break;
    at += static_cast<std::size_t>(n);
  }
  out.resize(at);
  return std::optional<wire::Bytes>(std::move(out));
}

// Adds what a record says to be acknowledged; the number it says would be given next.
Seq take_acknowledged(SeqSet& set, const Found& found) {
  if (found.type == RecordType::kAcks) {
    const auto ranges = decode_acks(found.payload);
    for (const auto& range : ranges.value_or(std::vector<Range>())) set.add(range.first, range.end());
  }
  if (found.type != RecordType::kSnapshot) return 0;
  const auto snapshot = decode_snapshot(found.payload);
  if (!snapshot) return 0;
  SeqSet live;
  for (const auto& range : snapshot->live) live.add(range.first, range.end());
  live.settle();
  for (const auto& gap : live.gaps(1, snapshot->next)) set.add(gap.first, gap.end);
  return snapshot->next;
}

class Loader {
 public:
  Loader(Io& io, int dir_fd, const std::string& dir)
      : io_(io),
        dir_fd_(dir_fd),
        dir_(dir),
        check_(base::fault::active("journal.no_check") ? Check::kOff : Check::kOn) {}

  base::Result<Loaded> run();

 private:
  struct Opened {
    LoadedFile file;
    wire::Bytes bytes;
  };
  base::Result<std::optional<Opened>> open_file(std::uint64_t index, const std::string& name, FileKind kind);
  base::Result<void> read_acks(std::uint64_t index);
  base::Result<void> read_segment(std::uint64_t index);
  void take_acks(LoadedFile& file, const Scan& scanned);
  void take_segment(Opened&& opened, std::size_t position);
  bool take_record(const Found& found, std::size_t file);
  void judge();
  std::uint64_t judge_damaged(std::size_t i, Seq from, const std::vector<SeqSet::Span>& gaps);
  void tell_gap(std::uint64_t lost);
  base::Result<void> note_aside(const std::string& name);
  void report(LoadedFile& file, std::uint64_t lost);

  Io& io_;
  const int dir_fd_;
  const std::string dir_;
  const Check check_;
  Loaded out_;
  SeqSet seen_;                // numbers of records that can be read, acknowledged or not
  std::vector<Seq> last_new_;  // by segment: the number behind its last record in a row
};

base::Result<std::optional<Loader::Opened>> Loader::open_file(std::uint64_t index, const std::string& name,
                                                              FileKind kind) {
  auto bytes = read_file(io_, dir_fd_, name);
  if (!bytes) return std::move(bytes).error();
  if (!bytes->has_value()) return std::optional<Opened>();
  Opened out;
  out.bytes = std::move(**bytes);
  const auto header = decode_header(out.bytes, check_);
  if (header.state == HeaderState::kOtherVersion) {
    return base::errno_error(
        ENOTSUP, "journal " + dir_ + "/" + name + " has format version " + std::to_string(header.version) +
                     ", this program knows " + std::to_string(kFormatVersion) +
                     ": run `nearbox flush` with the version that wrote it, or move the directory away");
  }
  out.file.index = index;
  out.file.name = name;
  out.file.size = out.bytes.size();
  out.file.state = header.state;
  out.file.header = header.header;
  if (header.state == HeaderState::kGood && (header.header.kind != kind || header.header.index != index)) {
    out.file.state = HeaderState::kDamaged;  // another file under this name
  }
  out_.disk_bytes += out.file.size;
  return std::optional<Opened>(std::move(out));
}

void Loader::report(LoadedFile& file, std::uint64_t lost) {
  Damage damage;
  damage.file = file.name;
  damage.offset = file.end;
  damage.bytes = file.size - std::min<std::uint64_t>(file.end, file.size);
  damage.lost = lost;
  damage.acks = file.name.starts_with(kAcksPrefix);
  out_.damages.push_back(std::move(damage));
}

void Loader::take_acks(LoadedFile& file, const Scan& scanned) {
  auto found = scanned.records;
  found.insert(found.end(), scanned.after.begin(), scanned.after.end());
  for (const auto& record : found) {
    out_.next_seq = std::max(out_.next_seq, take_acknowledged(out_.acknowledged, record));
  }
  file.end = scanned.end;
  file.tail = scanned.tail;
  if (scanned.tail != Tail::kDamaged) return;
  // An end alone is what a loss of power takes: no file was removed on the strength of it.
  if (!scanned.after.empty()) out_.acks_uncertain = true;
  report(file, 0);
}

// Newest first, until one has its snapshot: older ones say nothing more.
base::Result<void> Loader::read_acks(std::uint64_t index) {
  auto opened = open_file(index, acks_name(index), FileKind::kAcks);
  if (!opened) return std::move(opened).error();
  if (!opened->has_value()) return {};
  auto& file = (*opened)->file;
  if (!out_.current_acks.has_value() && file.state == HeaderState::kGood) {
    const auto scanned = scan((*opened)->bytes, file.header, check_);
    const bool snapshot = !scanned.records.empty() && scanned.records[0].type == RecordType::kSnapshot &&
                          decode_snapshot(scanned.records[0].payload).has_value();
    if (snapshot) {
      out_.current_acks = out_.acks.size();
      take_acks(file, scanned);
    } else if (scanned.tail == Tail::kDamaged) {
      file.harmful = true;
    }
  } else if (!out_.current_acks.has_value() && file.state == HeaderState::kDamaged) {
    file.harmful = true;
  }
  // Its snapshot cannot be read: what was acknowledged since the one before is not known.
  if (file.harmful) {
    out_.acks_uncertain = true;
    report(file, 0);
  }
  out_.acks.push_back(std::move(file));
  return {};
}

// False when the payload is none of ours although its checks hold: as good as damaged.
bool Loader::take_record(const Found& found, std::size_t file) {
  if (found.type != RecordType::kNew && found.type != RecordType::kMoved) return false;
  if (found.seq == 0) return false;
  auto stored = decode_record(found.payload);
  if (!stored) return false;
  seen_.add(found.seq, found.seq + 1);
  if (out_.acknowledged.contains(found.seq)) return true;
  stored->seq = found.seq;
  // Of two copies the later one counts: the other's file is about to go.
  out_.records[found.seq] = {std::move(*stored), file, found.offset, found.bytes()};
  return true;
}

void Loader::take_segment(Opened&& opened, std::size_t position) {
  LoadedFile file = std::move(opened.file);
  Seq next = 0;
  if (file.state == HeaderState::kGood) {
    const auto scanned = scan(opened.bytes, file.header, check_);
    file.end = scanned.end;
    file.tail = scanned.tail;
    next = file.header.next_seq;
    for (const auto& found : scanned.records) {
      if (!take_record(found, position)) file.tail = Tail::kDamaged;
      if (found.type == RecordType::kNew) next = std::max(next, found.seq + 1);
    }
    for (const auto& found : scanned.after) {
      (void)take_record(found, position);
      if (found.type == RecordType::kNew) out_.next_seq = std::max(out_.next_seq, found.seq + 1);
    }
    out_.next_seq = std::max(out_.next_seq, next);
  } else if (file.state == HeaderState::kDamaged) {
    file.tail = Tail::kDamaged;
  } else {
    file.tail = Tail::kTorn;
  }
  last_new_.push_back(next);
  if (file.tail == Tail::kTorn) out_.torn_bytes += file.size - std::min<std::uint64_t>(file.size, file.end);
  out_.segments.push_back(std::move(file));
}

base::Result<void> Loader::read_segment(std::uint64_t index) {
  auto opened = open_file(index, segment_name(index), FileKind::kSegment);
  if (!opened) return std::move(opened).error();
  if (opened->has_value()) take_segment(std::move(**opened), out_.segments.size());
  return {};
}

// Numbers are dense, so each one below the next is acknowledged, or its record is here, or it is lost.
void Loader::judge() {
  out_.next_seq = std::max(out_.next_seq, out_.acknowledged.end());
  // A file is removed only when the acknowledgements of its records are on the disk. So where they are
  // missing although the beginning is gone, they were lost, and nothing can be said of what is not here.
  const auto first = std::find_if(out_.segments.begin(), out_.segments.end(),
                                  [](const LoadedFile& file) { return file.state == HeaderState::kGood; });
  const bool begins = first == out_.segments.end() || first->header.next_seq == 1;
  if (!out_.current_acks && !begins && !out_.acks_uncertain) {
    out_.acks_uncertain = true;
    out_.damages.emplace_back().acks = true;
  }
  seen_.settle();
  std::vector<SeqSet::Span> gaps;
  for (const auto& gap : seen_.gaps(1, out_.next_seq)) {
    for (const auto& part : out_.acknowledged.gaps(gap.first, gap.end)) gaps.push_back(part);
  }
  // Where acknowledgements cannot be read, what is not here may have been one of them.
  if (!out_.acks_uncertain) {
    for (const auto& part : gaps) out_.lost += part.end - part.first;
    if (!gaps.empty()) out_.missing = gaps.front().first;
  }
  std::uint64_t told = 0;
  Seq from = 1;
  for (std::size_t i = 0; i < out_.segments.size(); ++i) {
    if (last_new_[i] != 0) from = last_new_[i];
    if (out_.segments[i].tail == Tail::kDamaged) told += judge_damaged(i, from, gaps);
  }
  if (told < out_.lost) tell_gap(out_.lost - told);
}

// Damage does no harm where a later file tells which numbers were given before it, and all are accounted
// for. It answers how many are not.
std::uint64_t Loader::judge_damaged(std::size_t i, Seq from, const std::vector<SeqSet::Span>& gaps) {
  auto& file = out_.segments[i];
  const auto later =
      std::find_if(out_.segments.begin() + static_cast<std::ptrdiff_t>(i) + 1, out_.segments.end(),
                   [](const LoadedFile& f) { return f.state == HeaderState::kGood; });
  const bool bounded = later != out_.segments.end();
  const Seq until = bounded ? later->header.next_seq : out_.next_seq;
  std::uint64_t lost = 0;
  for (const auto& part : gaps) {
    const Seq first = std::max(part.first, from);
    const Seq end = std::min(part.end, until);
    if (first < end) lost += end - first;
  }
  file.harmful = !bounded || lost != 0 || out_.missing != 0;
  if (!file.harmful) return 0;
  if (out_.acks_uncertain && lost != 0) {
    out_.lost += lost;
    if (out_.missing == 0 || from < out_.missing) out_.missing = from;
  }
  report(file, lost);
  return lost;
}

// Numbers are missing that no damaged place explains: a file's end, or a whole file, never reached the disk.
void Loader::tell_gap(std::uint64_t lost) {
  const auto it = std::find_if(out_.segments.rbegin(), out_.segments.rend(), [this](const LoadedFile& file) {
    return file.state == HeaderState::kGood && file.header.next_seq <= out_.missing;
  });
  Damage damage;
  if (it != out_.segments.rend()) damage.file = it->name, damage.offset = it->end;
  damage.lost = lost;
  out_.damages.push_back(std::move(damage));
}

base::Result<void> Loader::note_aside(const std::string& name) {
  const IoFd fd(io_, io_.openat(dir_fd_, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0));
  struct stat st {};
  if (!fd || io_.fstat(fd.get(), &st) != 0) return base::last_errno("look at " + name);
  out_.aside.push_back({name, static_cast<std::uint64_t>(st.st_size)});
  out_.disk_bytes += out_.aside.back().size;
  return {};
}

base::Result<Loaded> Loader::run() {
  auto names = names_in(io_, dir_fd_);
  if (!names) return std::move(names).error().during("journal " + dir_);
  std::vector<std::uint64_t> segments;
  std::vector<std::uint64_t> acks;
  for (const auto& name : *names) {
    if (const auto segment = whole_index(name, "seg-")) segments.push_back(*segment);
    if (const auto ack = whole_index(name, kAcksPrefix)) acks.push_back(*ack);
    if (const auto damaged = index_in(name, "damaged-")) {
      if (auto noted = note_aside(name); !noted) return std::move(noted).error().during("journal " + dir_);
      out_.next_index = std::max(out_.next_index, *damaged + 1);
    }
  }
  for (auto it = acks.rbegin(); it != acks.rend(); ++it) {
    out_.next_index = std::max(out_.next_index, *it + 1);
    if (auto read = read_acks(*it); !read) return std::move(read).error().during("journal " + dir_);
  }
  std::reverse(out_.acks.begin(), out_.acks.end());
  if (out_.current_acks) out_.current_acks = out_.acks.size() - 1 - *out_.current_acks;
  out_.acknowledged.settle();
  for (const auto index : segments) {
    out_.next_index = std::max(out_.next_index, index + 1);
    if (auto read = read_segment(index); !read) return std::move(read).error().during("journal " + dir_);
  }
  judge();
  return std::move(out_);
}

}  // namespace

std::string segment_name(std::uint64_t index) { return name_of("seg", index); }
std::string acks_name(std::uint64_t index) { return name_of("ack", index); }
std::string damaged_name(std::uint64_t index, Seq from) {
  return name_of("damaged", index) + name_of("-from", from);
}

void SeqSet::settle() {
  std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.first < b.first; });
  std::vector<Span> joined;
  for (const auto& span : spans_) {
    if (span.first >= span.end) continue;
    if (!joined.empty() && span.first <= joined.back().end) {
      joined.back().end = std::max(joined.back().end, span.end);
    } else {
      joined.push_back(span);
    }
  }
  spans_ = std::move(joined);
}

bool SeqSet::contains(Seq seq) const {
  const auto it = std::upper_bound(spans_.begin(), spans_.end(), seq,
                                   [](Seq value, const Span& span) { return value < span.first; });
  return it != spans_.begin() && seq < std::prev(it)->end;
}

std::vector<SeqSet::Span> SeqSet::gaps(Seq first, Seq end) const {
  std::vector<Span> out;
  for (const auto& span : spans_) {
    if (span.end <= first) continue;
    if (span.first >= end) break;
    if (span.first > first) out.push_back({first, span.first});
    first = span.end;
  }
  if (first < end) out.push_back({first, end});
  return out;
}

base::Result<IoFd> open_dir(Io& io, const std::string& dir) {
  IoFd fd(io, io.open_dir(dir.c_str()));
  if (!fd) return base::last_errno("journal " + dir);
  return fd;
}

base::Result<Loaded> load(Io& io, int dir_fd, const std::string& dir) {
  return Loader(io, dir_fd, dir).run();
}

namespace {

struct Aside {
  SeqSet acknowledged;
  std::map<Seq, Stored> records;
};

void take_aside(Aside& aside, const Found& found, Seq from) {
  if (found.type == RecordType::kNew || found.type == RecordType::kMoved) {
    auto stored = found.seq < from ? std::nullopt : decode_record(found.payload);
    if (!stored) return;
    stored->seq = found.seq;
    aside.records.insert_or_assign(found.seq, std::move(*stored));
  } else {
    (void)take_acknowledged(aside.acknowledged, found);
  }
}

}  // namespace

base::Result<std::vector<Stored>> load_aside(Io& io, int dir_fd, const std::vector<AsideFile>& files) {
  std::map<Seq, Aside> asides;  // by the first number: the files of one gap
  for (const auto& [name, size] : files) {
    const auto from = damaged_from(name);
    if (!from) continue;
    auto bytes = read_file(io, dir_fd, name);
    if (!bytes) return std::move(bytes).error();
    if (!bytes->has_value()) continue;
    const auto header = decode_header(**bytes);
    if (header.state != HeaderState::kGood) continue;
    const auto scanned = scan(**bytes, header.header);
    Aside& aside = asides[*from];
    for (const auto& found : scanned.records) take_aside(aside, found, *from);
    for (const auto& found : scanned.after) take_aside(aside, found, *from);
  }
  std::vector<Stored> out;
  for (auto& [from, aside] : asides) {
    aside.acknowledged.settle();
    for (auto& [seq, stored] : aside.records) {
      if (!aside.acknowledged.contains(seq)) out.push_back(std::move(stored));
    }
  }
  return out;
}

}  // namespace nearbox::journal
