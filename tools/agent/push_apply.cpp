// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/push_apply.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/base/fault.h"
#include "client/wire/paths.h"

namespace nearbox::agent {
namespace {

using wire::PushKind;
using wire::PushOutcome;

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr int kPlaceTries = 4;  // when what is there changes each time

wire::PushResult result_of(PushOutcome outcome, wire::PushStamp stamp = 0) {
  wire::PushResult result;
  result.outcome = outcome;
  result.stamp = stamp;
  return result;
}

std::int64_t mtime_of(const Stat& st) { return st.st_mtim.tv_sec * kSecond + st.st_mtim.tv_nsec; }

int set_time(int dir, const char* name, std::int64_t ns) {
  timespec times[2] = {{0, UTIME_OMIT}, {ns / kSecond, ns % kSecond}};
  if (times[1].tv_nsec < 0) {
    times[1].tv_nsec += kSecond;
    --times[1].tv_sec;
  }
  return ::utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW);
}

base::Result<void> write_all(int fd, wire::ByteView bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("write");
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

// The bytes of one file into another, as the file system does it best.
base::Result<void> copy_all(int from, int to) {
  while (true) {
    const ssize_t n = ::copy_file_range(from, nullptr, to, nullptr, 1 << 30, 0);
    if (n > 0) continue;
    if (n == 0) return {};
    if (errno == EINTR) continue;
    break;
  }
  if (::lseek(from, 0, SEEK_SET) < 0 || ::lseek(to, 0, SEEK_SET) < 0) return base::last_errno("copy");
  std::vector<std::byte> buffer(256 * 1024);
  while (true) {
    const ssize_t n = ::read(from, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::last_errno("copy");
    if (n == 0) return {};
    if (auto done = write_all(to, wire::ByteView(buffer).first(static_cast<std::size_t>(n))); !done)
      return done;
  }
}

}  // namespace

wire::PushResult PushApplier::apply(const wire::PushEntry& entry) {
  auto result = dispatch(entry);
  if (result) return *std::move(result);
  auto failed = result_of(PushOutcome::kFailed);
  failed.error = result.error().as_errno();
  return failed;
}

PushApplier::Outcome PushApplier::dispatch(const wire::PushEntry& entry) {
  if (entry.path.empty() || !wire::valid_path(entry.path)) return base::errno_error(EINVAL, "path");
  switch (entry.kind) {
    case PushKind::kFile:
    case PushKind::kStaged:
    case PushKind::kSymlink:
    case PushKind::kCopy:
      return put(entry);
    case PushKind::kDirectory:
      return put_directory(entry);
    case PushKind::kMode:
      return set_mode(entry);
    case PushKind::kRename:
      return rename_file(entry);
    case PushKind::kRenameTree:
      return rename_tree(entry);
    case PushKind::kDelete:
      return remove(entry);
    case PushKind::kRemoveDir:
      return remove_directory(entry);
  }
  return base::errno_error(EINVAL, "kind");
}

// ---- places ---------------------------------------------------------------------------------------

base::Result<void> PushApplier::make_parents(std::string_view directory) {
  for (std::size_t at = 0; at <= directory.size(); ++at) {
    at = std::min(directory.find('/', at), directory.size());
    const std::string part(directory.substr(0, at));
    auto place = open_place(root_->dir.get(), part);
    if (!place) return std::move(place).error();
    if (::mkdirat(place->dir.get(), place->name.c_str(), 0755) != 0) {
      if (errno == EEXIST) continue;
      return base::last_errno("mkdir");
    }
    auto st = stat_place(*place, {});
    if (!st) return std::move(st).error();
    if (who_.root() && (st->st_uid != who_.uid || (st->st_gid != who_.gid && (st->st_mode & S_ISGID) == 0))) {
      (void)::fchownat(place->dir.get(), place->name.c_str(), who_.uid, who_.gid, AT_SYMLINK_NOFOLLOW);
    }
    tell_(part, &*st, true);
  }
  return {};
}

base::Result<Place> PushApplier::place_for(std::string_view path, bool make) {
  const auto slash = path.rfind('/');
  const auto directory = slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
  if (!last_fd_ || last_dir_ != directory) {
    auto opened = open_beneath(root_->dir.get(), directory, O_PATH | O_DIRECTORY);
    if (!opened && opened.error().as_errno() == ENOENT && make && !directory.empty()) {
      if (auto made = make_parents(directory); !made) return std::move(made).error();
      opened = open_beneath(root_->dir.get(), directory, O_PATH | O_DIRECTORY);
    }
    if (!opened) return std::move(opened).error();
    last_fd_ = std::move(*opened);
    last_dir_ = directory;
  }
  base::UniqueFd copy(::fcntl(last_fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return base::last_errno("dup");
  return Place{std::move(copy), std::string(slash == std::string_view::npos ? path : path.substr(slash + 1))};
}

// ---- files and symlinks ---------------------------------------------------------------------------

// Makes a scratch node with the content; its name.
base::Result<std::string> PushApplier::fill(const wire::PushEntry& entry) {
  if (entry.kind == PushKind::kFile) return fill_file(entry);
  if (entry.kind == PushKind::kCopy) return fill_copy(entry);
  if (entry.kind == PushKind::kStaged) return check_staged(entry);
  if (entry.source.empty() || entry.source.find('\0') != std::string::npos) {
    return base::errno_error(EINVAL, "target");
  }
  auto name = stage_->scratch_name();
  if (::symlinkat(entry.source.c_str(), stage_->fd(), name.c_str()) != 0) return base::last_errno("symlink");
  return name;
}

base::Result<std::string> PushApplier::fill_file(const wire::PushEntry& entry) {
  const bool whole = entry.data.size() == entry.size && wire::digest_of(entry.data) == entry.digest;
  if (!whole && !base::fault::active("agent.push_no_digest_check", entry.path)) {
    return base::errno_error(EBADMSG, "digest");
  }
  auto name = stage_->scratch_name();
  base::UniqueFd fd(
      ::openat(stage_->fd(), name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return base::last_errno("stage");
  Scratch scratch(*stage_, name);
  if (base::fault::active("agent.push_no_space", entry.path)) return base::errno_error(ENOSPC, "write");
  if (auto written = write_all(fd.get(), entry.data); !written) return std::move(written).error();
  if (auto closed = fd.close(); closed) return base::Error{closed, "close"};
  scratch.placed();
  return name;
}

base::Result<std::string> PushApplier::fill_copy(const wire::PushEntry& entry) {
  auto from = open_place(root_->dir.get(), entry.source);
  if (!from) return std::move(from).error();
  auto file = open_regular(*from, {}, O_RDONLY);
  if (!file) return std::move(file).error();
  auto name = stage_->scratch_name();
  base::UniqueFd fd(
      ::openat(stage_->fd(), name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return base::last_errno("stage");
  Scratch scratch(*stage_, name);
  if (auto copied = copy_all(file->fd.get(), fd.get()); !copied) return std::move(copied).error();
  auto digest = digest_of_file(fd.get());  // of the copy itself
  if (!digest) return std::move(digest).error();
  if (*digest != entry.digest) return base::errno_error(ESTALE, "copy");
  scratch.placed();
  return name;
}

// The file that came in parts, if it is what it shall be. It stays under its name otherwise.
base::Result<std::string> PushApplier::check_staged(const wire::PushEntry& entry) {
  const auto staged = StageDir::stage_name(entry.digest);
  base::UniqueFd fd(::openat(stage_->fd(), staged.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return base::last_errno("staged file");
  if (::ftruncate(fd.get(), static_cast<off_t>(entry.size)) != 0) return base::last_errno("truncate");
  auto digest = digest_of_file(fd.get());
  if (!digest) return std::move(digest).error();
  if (*digest != entry.digest && !base::fault::active("agent.push_no_digest_check", entry.path)) {
    return base::errno_error(EBADMSG, "digest");
  }
  auto name = stage_->scratch_name();
  if (::renameat(stage_->fd(), staged.c_str(), stage_->fd(), name.c_str()) != 0)
    return base::last_errno("stage");
  return name;
}

// Owner, mode and time, before the node is seen.
base::Result<void> PushApplier::dress(const wire::PushEntry& entry, const Place& place,
                                      const Scratch& scratch, const PushSight& sight) {
  auto st = stat_at(scratch.dir(), scratch.name().c_str());
  if (!st) return std::move(st).error();
  auto parent = stat_fd(place.dir.get());
  if (!parent) return std::move(parent).error();
  const char* const name = scratch.name().c_str();
  const uid_t uid = who_.root() ? who_.uid : st->st_uid;
  const gid_t own = who_.root() ? who_.gid : st->st_gid;
  const gid_t gid = (parent->st_mode & S_ISGID) != 0 ? parent->st_gid : own;
  if ((st->st_uid != uid || st->st_gid != gid) &&
      ::fchownat(scratch.dir(), name, uid, gid, AT_SYMLINK_NOFOLLOW) != 0 && who_.root()) {
    return base::last_errno("chown");
  }
  const mode_t mode = entry.mode & 07777;
  if (!S_ISLNK(st->st_mode) && (st->st_mode & 07777) != mode &&
      ::fchmodat(scratch.dir(), name, mode, 0) != 0) {
    return base::last_errno("chmod");
  }
  const auto now = clock_now_ns();
  if (sight.found.kind == PushFound::Kind::kNothing) {
    const auto time = entry.mtime_ns == 0 ? now : std::min(entry.mtime_ns, now);
    if (set_time(scratch.dir(), name, time) != 0) return base::last_errno("utimens");
    return {};
  }
  // What was built from the old one may be as young as now: the change is later than both. Coarse file
  // systems round down, hence the second look.
  const auto old = mtime_of(sight.st);
  auto time = later_time(now, old);
  for (const auto step : {std::int64_t{0}, kSecond, 2 * kSecond}) {
    time = std::max(time, old + step);
    if (set_time(scratch.dir(), name, time) != 0) return base::last_errno("utimens");
    auto after = stat_at(scratch.dir(), name);
    if (!after) return std::move(after).error();
    if (mtime_of(*after) > old) break;
  }
  return {};
}

PushApplier::Outcome PushApplier::already(const wire::PushEntry& entry, const Place& place,
                                          const PushSight& sight) {
  if (sight.found.kind == PushFound::Kind::kFile && (sight.st.st_mode & 07777) != (entry.mode & 07777)) {
    auto file = open_regular(place, node_of(sight.st), O_RDONLY);
    if (!file) return std::move(file).error();
    if (::fchmod(file->fd.get(), entry.mode & 07777) != 0) return base::last_errno("chmod");
  }
  auto result = done(entry.path, place, {PushOutcome::kAlready, {}});
  return result;
}

wire::PushResult PushApplier::done(const std::string& path, const Place& place, Placed placed) {
  auto result = result_of(placed.outcome);
  const auto slash = path.rfind('/');
  const auto prefix = slash == std::string::npos ? std::string() : path.substr(0, slash + 1);
  if (!placed.kept_as.empty()) {
    result.kept_as = prefix + placed.kept_as;
    auto kept = stat_at(place.dir.get(), placed.kept_as.c_str());
    tell_(result.kept_as, kept ? &*kept : nullptr, false);
  }
  auto st = stat_place(place, {});
  if (st) result.stamp = stamp_of(*st);
  tell_(path, st ? &*st : nullptr, false);
  return result;
}

PushApplier::Outcome PushApplier::put(const wire::PushEntry& entry) {
  auto place = place_for(entry.path, true);
  if (!place) return std::move(place).error();
  std::optional<Scratch> scratch;
  for (int tries = 0; tries < kPlaceTries; ++tries) {
    auto sight = look_at(*place, true);
    if (!sight) return std::move(sight).error();
    const auto step = decide_push(entry, sight->found);
    if (step == PushStep::kAlready) return already(entry, *place, *sight);
    if (step == PushStep::kLeave) return result_of(PushOutcome::kLeft);
    if (!scratch) {
      auto filled = fill(entry);
      if (!filled) return std::move(filled).error();
      scratch.emplace(*stage_, *std::move(filled));
    }
    if (auto dressed = dress(entry, *place, *scratch, *sight); !dressed) return std::move(dressed).error();
    if (base::fault::active("agent.push_crash_before_place", entry.path)) std::abort();
    auto placed = place_scratch(entry, *place, *sight, step, *scratch);
    if (!placed && placed.error().as_errno() == EEXIST) continue;
    if (!placed) return std::move(placed).error();
    if (base::fault::active("agent.push_crash_after_place", entry.path)) std::abort();
    return done(entry.path, *place, *std::move(placed));
  }
  return base::errno_error(EAGAIN, "place");
}

PushApplier::Outcome PushApplier::set_mode(const wire::PushEntry& entry) {
  auto place = place_for(entry.path, false);
  if (!place) return std::move(place).error();
  auto sight = look_at(*place, true);
  if (!sight) return std::move(sight).error();
  if (sight->found.kind != PushFound::Kind::kFile || sight->found.digest != entry.digest) {
    return result_of(PushOutcome::kLeft);
  }
  auto result = already(entry, *place, *sight);
  if (result) result->outcome = PushOutcome::kDone;
  return result;
}

// ---- directories ----------------------------------------------------------------------------------

PushApplier::Outcome PushApplier::put_directory(const wire::PushEntry& entry) {
  auto place = place_for(entry.path, true);
  if (!place) return std::move(place).error();
  const mode_t mode = entry.mode & 07777;
  const bool made = ::mkdirat(place->dir.get(), place->name.c_str(), mode) == 0;
  if (!made && errno != EEXIST) return base::last_errno("mkdir");
  base::UniqueFd dir(
      ::openat(place->dir.get(), place->name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!dir && (errno == ENOTDIR || errno == ELOOP)) return result_of(PushOutcome::kLeft);
  if (!dir) return base::last_errno("open");
  auto st = stat_fd(dir.get());
  if (!st) return std::move(st).error();
  if (made && who_.root() && st->st_uid != who_.uid) (void)::fchown(dir.get(), who_.uid, st->st_gid);
  const mode_t kept = st->st_mode & S_ISGID;  // as its directory gave it
  const bool same = (st->st_mode & 07777) == (mode | kept);
  if (!same && ::fchmod(dir.get(), mode | kept) != 0) return base::last_errno("chmod");
  if (made || !same) tell_(entry.path, &*st, made);
  return result_of(made || !same ? PushOutcome::kDone : PushOutcome::kAlready, stamp_of(*st));
}

PushApplier::Outcome PushApplier::remove_directory(const wire::PushEntry& entry) {
  auto place = place_for(entry.path, false);
  if (!place && place.error().as_errno() == ENOENT) return result_of(PushOutcome::kAlready);
  if (!place) return std::move(place).error();
  last_fd_.reset();
  if (::unlinkat(place->dir.get(), place->name.c_str(), AT_REMOVEDIR) == 0) {
    tell_(entry.path, nullptr, false);
    return result_of(PushOutcome::kDone);
  }
  if (errno == ENOENT) return result_of(PushOutcome::kAlready);
  if (errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR || errno == EBUSY) {
    return result_of(PushOutcome::kLeft);
  }
  return base::last_errno("rmdir");
}

// ---- names ----------------------------------------------------------------------------------------

PushApplier::Outcome PushApplier::rename_file(const wire::PushEntry& entry) {
  auto from = open_place(root_->dir.get(), entry.source);
  auto sight = from ? look_at(*from, true) : base::Result<PushSight>(from.error());
  auto place = place_for(entry.path, true);
  if (!place) return std::move(place).error();
  const bool there =
      sight && sight->found.kind == PushFound::Kind::kFile && sight->found.digest == entry.digest;
  if (there && ::renameat2(from->dir.get(), from->name.c_str(), place->dir.get(), place->name.c_str(),
                           RENAME_NOREPLACE) == 0) {
    tell_(entry.source, nullptr, false);
    auto moved = look_at(*place, false);
    if (moved && (moved->st.st_mode & 07777) != (entry.mode & 07777)) return already(entry, *place, *moved);
    return done(entry.path, *place, {});
  }
  // A repetition, or somebody else did the same.
  auto target = look_at(*place, true);
  if (target && target->found.kind == PushFound::Kind::kFile && target->found.digest == entry.digest) {
    if (there) (void)take_away(*from, *sight, *stage_);
    return already(entry, *place, *target);
  }
  return base::errno_error(ESTALE, "rename");
}

PushApplier::Outcome PushApplier::rename_tree(const wire::PushEntry& entry) {
  if (!wire::valid_path(entry.source) || entry.source.empty()) return base::errno_error(EINVAL, "source");
  auto place = place_for(entry.path, true);
  if (!place) return std::move(place).error();
  auto from = open_place(root_->dir.get(), entry.source);
  auto sight = from ? look_at(*from, false) : base::Result<PushSight>(from.error());
  if (sight && sight->found.kind == PushFound::Kind::kDirectory &&
      ::renameat2(from->dir.get(), from->name.c_str(), place->dir.get(), place->name.c_str(),
                  RENAME_NOREPLACE) == 0) {
    last_fd_.reset();
    tell_(entry.source, nullptr, false);
    return done(entry.path, *place, {});
  }
  const bool source_gone = (sight && sight->found.kind == PushFound::Kind::kNothing) ||
                           (!sight && sight.error().as_errno() == ENOENT);
  auto target = look_at(*place, false);
  if (source_gone && target && target->found.kind == PushFound::Kind::kDirectory) {
    return result_of(PushOutcome::kAlready, stamp_of(target->st));
  }
  return base::errno_error(ESTALE, "rename");
}

PushApplier::Outcome PushApplier::remove(const wire::PushEntry& entry) {
  auto place = place_for(entry.path, false);
  if (!place && place.error().as_errno() == ENOENT) return result_of(PushOutcome::kAlready);
  if (!place) return std::move(place).error();
  auto sight = look_at(*place, true);
  if (!sight) return std::move(sight).error();
  const auto step = decide_delete(entry, sight->found);
  if (step == PushStep::kAlready || step == PushStep::kLeave) {
    return result_of(step == PushStep::kAlready ? PushOutcome::kAlready : PushOutcome::kLeft);
  }
  auto taken = take_away(*place, *sight, *stage_);
  if (!taken) return std::move(taken).error();
  tell_(entry.path, nullptr, false);
  return result_of(*taken ? PushOutcome::kDone : PushOutcome::kLeft);
}

}  // namespace nearbox::agent
