// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/push_place.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kReadBytes = 256 * 1024;
constexpr std::int64_t kLaterBy = 1'000'000;  // a difference that programs which count milliseconds see
constexpr int kMaxKeptNames = 1000;

std::int64_t nanoseconds(const timespec& t) { return t.tv_sec * 1'000'000'000LL + t.tv_nsec; }

bool same_state(const Stat& a, const Stat& b) {
  return a.st_ino == b.st_ino && a.st_dev == b.st_dev && a.st_size == b.st_size &&
         nanoseconds(a.st_mtim) == nanoseconds(b.st_mtim);
}

base::Result<std::string> link_target(const Place& place) {
  std::array<char, wire::kMaxPath> buffer{};
  const ssize_t n = ::readlinkat(place.dir.get(), place.name.c_str(), buffer.data(), buffer.size());
  if (n < 0) return base::last_errno("readlink");
  return std::string(buffer.data(), static_cast<std::size_t>(n));
}

// Another name beside: `a.c` → `a.sandbox.c`, then `a.sandbox-2.c`.
std::string kept_name(const std::string& name, int number) {
  const auto dot = name.rfind('.');
  const bool has_suffix = dot != std::string::npos && dot > 0 && name.size() - dot <= 16;
  const auto stem = has_suffix ? name.substr(0, dot) : name;
  const auto suffix = has_suffix ? name.substr(dot) : std::string();
  const auto mark = ".sandbox" + (number == 1 ? std::string() : "-" + std::to_string(number));
  const auto room = wire::kMaxName - std::min(wire::kMaxName, suffix.size() + mark.size());
  return stem.substr(0, room) + mark + suffix;
}

// Moves what is at (dir, name) to another name beside `place`.
base::Result<std::string> keep_beside(int dir, const std::string& name, const Place& place) {
  for (int number = 1; number <= kMaxKeptNames; ++number) {
    auto kept = kept_name(place.name, number);
    if (::renameat2(dir, name.c_str(), place.dir.get(), kept.c_str(), RENAME_NOREPLACE) == 0) return kept;
    if (errno != EEXIST) return base::last_errno("keep");
  }
  return base::errno_error(EEXIST, "keep");
}

}  // namespace

wire::PushStamp stamp_of(const Stat& st) {
  struct {
    std::uint64_t type, ino, size, mtime, ctime;
  } what{st.st_mode & S_IFMT, st.st_ino, static_cast<std::uint64_t>(st.st_size),
         static_cast<std::uint64_t>(nanoseconds(st.st_mtim)),
         static_cast<std::uint64_t>(nanoseconds(st.st_ctim))};
  if (S_ISDIR(st.st_mode)) what = {S_IFDIR, 0, 0, 0, 0};  // what lies in it has stamps of its own
  const auto stamp = wire::hash64(std::as_bytes(std::span(&what, 1)));
  return stamp == 0 ? 1 : stamp;
}

std::int64_t clock_now_ns() {
  timespec now{};
  (void)::clock_gettime(CLOCK_REALTIME, &now);
  return nanoseconds(now);
}

std::int64_t later_time(std::int64_t now_ns, std::int64_t old_ns) {
  if (base::fault::active("agent.push_keep_times")) return old_ns;
  return std::max(now_ns, old_ns + kLaterBy);
}

base::Result<wire::Digest> digest_of_file(int fd) {
  thread_local const std::unique_ptr<std::byte[]> buffer(new std::byte[kReadBytes]);
  wire::Hasher hasher;
  for (std::uint64_t at = 0;;) {
    const ssize_t n = ::pread(fd, buffer.get(), kReadBytes, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("read");
    if (n == 0) return hasher.digest();
    hasher.add({buffer.get(), static_cast<std::size_t>(n)});
    at += static_cast<std::uint64_t>(n);
  }
}

base::Result<PushSight> look_at(const Place& place, bool want_content) {
  PushSight sight;
  auto st = stat_place(place, {});
  if (!st && st.error().as_errno() == ENOENT) return sight;
  if (!st) return std::move(st).error();
  sight.st = *st;
  using Kind = PushFound::Kind;
  sight.found.kind = S_ISREG(st->st_mode)   ? Kind::kFile
                     : S_ISLNK(st->st_mode) ? Kind::kSymlink
                     : S_ISDIR(st->st_mode) ? Kind::kDirectory
                                            : Kind::kOther;
  if (!want_content || !sight.found.movable()) return sight;
  if (sight.found.kind == Kind::kSymlink) {
    auto target = link_target(place);
    if (!target) return std::move(target).error();
    sight.found.digest = wire::digest_of(wire::as_view(*target));
    return sight;
  }
  auto file = open_regular(place, node_of(*st), O_RDONLY);
  if (!file) return std::move(file).error();
  auto digest = digest_of_file(file->fd.get());
  if (!digest) return std::move(digest).error();
  auto after = stat_fd(file->fd.get());
  if (!after) return std::move(after).error();
  if (!same_state(*after, file->st)) return base::errno_error(EAGAIN, "read");
  sight.st = *after;
  sight.found.digest = *digest;
  return sight;
}

Scratch::~Scratch() {
  if (!name_.empty()) (void)::unlinkat(dir_.fd(), name_.c_str(), 0);
}

namespace {

// Swaps the scratch file with what is there, then looks at what came out. True: it was what had been seen.
base::Result<bool> exchange(const Place& place, const PushSight& sight, Scratch& scratch) {
  const char* const name = place.name.c_str();
  if (::renameat2(scratch.dir(), scratch.name().c_str(), place.dir.get(), name, RENAME_EXCHANGE) != 0) {
    if (errno != EINVAL && errno != ENOSYS) return base::last_errno("exchange");
    // A file system that cannot: what is written between the look and this is lost.
    if (::renameat(scratch.dir(), scratch.name().c_str(), place.dir.get(), name) != 0) {
      return base::last_errno("rename");
    }
    scratch.placed();
    return true;
  }
  auto displaced = stat_at(scratch.dir(), scratch.name().c_str());
  return displaced && same_state(*displaced, sight.st);
}

}  // namespace

namespace {

// What came out of an exchange was not what had been seen. It may be the very file that is being placed: a
// batch that is repeated after a cut may run beside itself.
base::Result<Placed> came_between(const wire::PushEntry& entry, const Place& place, Scratch& scratch) {
  Place out{base::UniqueFd(::fcntl(scratch.dir(), F_DUPFD_CLOEXEC, 0)), scratch.name()};
  if (!out.dir) return base::last_errno("dup");
  const auto displaced = look_at(out, true);
  if (displaced && displaced->found.movable() && displaced->found.digest == entry.digest) return Placed{};
  if (entry.conflict == wire::PushConflict::kOverwrite) return Placed{};
  if (entry.conflict == wire::PushConflict::kKeepBoth) {
    auto kept = keep_beside(scratch.dir(), scratch.name(), place);
    if (!kept) return std::move(kept).error();
    scratch.placed();
    return Placed{wire::PushOutcome::kKeptBoth, *std::move(kept)};
  }
  if (::renameat2(scratch.dir(), scratch.name().c_str(), place.dir.get(), place.name.c_str(),
                  RENAME_EXCHANGE) != 0) {
    return base::last_errno("exchange");
  }
  return Placed{wire::PushOutcome::kLeft, {}};
}

}  // namespace

base::Result<Placed> place_scratch(const wire::PushEntry& entry, const Place& place, const PushSight& sight,
                                   PushStep step, Scratch& scratch) {
  Placed placed;
  const char* const name = place.name.c_str();
  if (step == PushStep::kReplace) {
    auto swapped = exchange(place, sight, scratch);
    if (!swapped) {
      const int error = swapped.error().as_errno();
      return error == ENOENT ? base::errno_error(EEXIST, "exchange") : std::move(swapped).error();
    }
    return *swapped ? placed : came_between(entry, place, scratch);
  }
  if (step == PushStep::kKeepBoth) {
    auto kept = keep_beside(place.dir.get(), place.name, place);
    if (!kept) {
      return kept.error().as_errno() == ENOENT ? base::errno_error(EEXIST, "keep") : std::move(kept).error();
    }
    auto moved = stat_at(place.dir.get(), kept->c_str());
    if (!moved || !same_state(*moved, sight.st)) {  // it came since
      (void)::renameat2(place.dir.get(), kept->c_str(), place.dir.get(), name, RENAME_NOREPLACE);
      return base::errno_error(EEXIST, "keep");
    }
    placed = {wire::PushOutcome::kKeptBoth, *std::move(kept)};
  }
  if (::renameat2(scratch.dir(), scratch.name().c_str(), place.dir.get(), name, RENAME_NOREPLACE) != 0) {
    const int error = errno;
    // A conflict that was kept stays kept, whoever has the name now.
    if (error == EEXIST && placed.outcome == wire::PushOutcome::kKeptBoth) return placed;
    return base::errno_error(error, "rename");
  }
  scratch.placed();
  return placed;
}

base::Result<bool> take_away(const Place& place, const PushSight& sight, StageDir& stage) {
  Scratch scratch(stage, stage.scratch_name());
  const char* const name = place.name.c_str();
  if (::renameat2(place.dir.get(), name, scratch.dir(), scratch.name().c_str(), RENAME_NOREPLACE) != 0) {
    if (errno == ENOENT) return true;
    return base::last_errno("rename");
  }
  auto taken = stat_at(scratch.dir(), scratch.name().c_str());
  if (taken && same_state(*taken, sight.st)) return true;
  // Something else had come: back with it, beside what may have come again.
  if (::renameat2(scratch.dir(), scratch.name().c_str(), place.dir.get(), name, RENAME_NOREPLACE) != 0) {
    if (auto kept = keep_beside(scratch.dir(), scratch.name(), place); !kept) return std::move(kept).error();
  }
  scratch.placed();
  return false;
}

}  // namespace nearbox::agent
