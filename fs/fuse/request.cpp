// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/request.h"

#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <string_view>
#include <unistd.h>
#include <utility>

#include "client/base/unique_fd.h"

namespace nearbox::fs {

using base::MutexLock;

Request::Request(Request&& from) noexcept
    : req_(std::exchange(from.req_, nullptr)),
      op_(from.op_),
      ino_(from.ino_),
      log_(from.log_),
      alive_(std::exchange(from.alive_, nullptr)) {}

Request::~Request() {
  if (req_ != nullptr) {
    log_->error(std::string("fuse op=") + op_ + " ino=" + std::to_string(ino_) + " unanswered");
    error(EIO);
  }
  if (alive_ != nullptr) alive_->sub();
}

fuse_req_t Request::take() {
  if (req_ == nullptr) {
    log_->error(std::string("fuse op=") + op_ + " ino=" + std::to_string(ino_) + " answered twice");
  }
  return std::exchange(req_, nullptr);
}

bool Request::sent(int result) { return result == 0; }

bool Request::error(int err) {
  auto* const req = take();
  if (req == nullptr) return false;
  if (err != 0 && err != ENOENT && err != ENOSYS && log_->enabled(base::LogLevel::kDebug)) {
    log_->debug(std::string("fuse op=") + op_ + " ino=" + std::to_string(ino_) +
                " errno=" + std::to_string(err));
  }
  return sent(fuse_reply_err(req, err < 0 || err > 511 ? EIO : err));
}
bool Request::entry(const fuse_entry_param& entry) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_entry(req, &entry));
}
bool Request::create(const fuse_entry_param& entry, const fuse_file_info& info) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_create(req, &entry, &info));
}
bool Request::attr(const struct stat& st, double timeout) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_attr(req, &st, timeout));
}
bool Request::readlink(const std::string& target) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_readlink(req, target.c_str()));
}
bool Request::buffer(const char* data, std::size_t size) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_buf(req, data, size));
}
bool Request::pieces(const std::vector<iovec>& parts) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_iov(req, parts.data(), static_cast<int>(parts.size())));
}
bool Request::write(std::size_t count) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_write(req, count));
}
bool Request::statfs(const struct statvfs& st) {
  auto* const req = take();
  return req != nullptr && sent(fuse_reply_statfs(req, &st));
}
void Request::none() {
  auto* const req = take();
  if (req != nullptr) fuse_reply_none(req);
}

namespace {

// libfuse calls the interrupt function at once, inside its registration, for a request that was
// interrupted before. Answering there would free the request whose lock the registration still holds.
thread_local bool t_registering = false;
thread_local bool t_interrupted = false;

struct Handle {  // what libfuse gets as data: numbers only, so nothing can be freed under it
  static void* pack(ParkedTable::Id id) { return reinterpret_cast<void*>(id); }
  static ParkedTable::Id unpack(void* data) { return reinterpret_cast<ParkedTable::Id>(data); }
};

// The mask of pending signals in a line of /proc/<pid>/status.
std::uint64_t signals(std::string_view status, std::string_view field) {
  const auto at = status.find(field);
  return at == std::string_view::npos ? 0 : std::strtoull(status.data() + at + field.size(), nullptr, 16);
}

// A fatal signal marks each thread of the process with a pending SIGKILL. One that cannot be looked at
// counts as killed: a process that nobody can end is worse than a change made twice.
bool killed(pid_t thread) {
  constexpr std::uint64_t kKill = 1u << 8;  // SIGKILL is signal 9
  if (thread <= 0) return true;
  const std::string path = "/proc/" + std::to_string(thread) + "/status";
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return true;
  char text[4096];
  const ssize_t n = ::read(fd.get(), text, sizeof(text) - 1);
  if (n <= 0) return true;
  text[n] = '\0';
  const std::string_view status(text, static_cast<std::size_t>(n));
  return ((signals(status, "\nSigPnd:\t") | signals(status, "\nShdPnd:\t")) & kKill) != 0;
}

}  // namespace

void ParkedTable::interrupted(fuse_req_t req, void* data) {
  if (t_registering) {
    t_interrupted = true;
  } else {
    static_cast<SessionHandle*>(fuse_req_userdata(req))->parked->interrupt(Handle::unpack(data));
  }
}

void ParkedTable::interrupt(Id id) {
  bool change = false;
  pid_t pid = 0;
  {
    MutexLock lock(mu_);
    const auto it = entries_.find(id);
    if (it == entries_.end()) return;
    it->second.interrupted = true;
    if (!it->second.armed) return;  // park() sees it
    change = it->second.kind == Kind::kChange;
    pid = it->second.pid;
  }
  if (change && !killed(pid)) return;  // expire() looks again: the kernel interrupts once only
  if (auto request = take(id)) request->error(EINTR);
}

// While the interrupt function is being registered only this thread may touch the request; from
// `armed` on it belongs to whoever takes it out of the table.
ParkedTable::Id ParkedTable::park(Request request, Kind kind, TimePoint deadline, std::uint64_t busy1,
                                  std::uint64_t busy2) {
  const fuse_req_t raw = request.raw();
  const pid_t pid = fuse_req_ctx(raw)->pid;
  Id id = 0;
  int refuse = 0;
  {
    MutexLock lock(mu_);
    refuse = closed_ != 0 ? closed_ : entries_.size() >= kMaxParked ? EAGAIN : 0;
    if (refuse == 0) {
      id = next_++;
      for (const auto ino : {busy1, busy2}) {
        if (ino != 0) ++busy_[ino];
      }
      entries_.emplace(id, Entry{std::move(request), deadline, {busy1, busy2}, kind, pid});
    }
  }
  if (refuse != 0) {
    request.error(refuse);
    return 0;
  }
  t_registering = true;
  t_interrupted = false;
  fuse_req_interrupt_func(raw, &ParkedTable::interrupted, Handle::pack(id));
  t_registering = false;
  int error = 0;
  {
    MutexLock lock(mu_);
    Entry& entry = entries_.at(id);
    entry.armed = true;
    error = t_interrupted || entry.interrupted ? EINTR : closed_;
  }
  if (error == 0) return id;
  if (auto again = take(id)) again->error(error);
  return 0;
}

std::optional<Request> ParkedTable::take(Id id) {
  std::map<Id, Entry>::node_type node;
  {
    MutexLock lock(mu_);
    node = entries_.extract(id);
  }
  if (node.empty()) return std::nullopt;
  unbusy(node.mapped());
  return std::move(node.mapped().request);
}

void ParkedTable::unbusy(const Entry& entry) {
  for (const auto ino : entry.busy) {
    if (ino == 0) continue;
    {
      MutexLock lock(mu_);
      const auto it = busy_.find(ino);
      if (it == busy_.end() || --it->second != 0) continue;
      busy_.erase(it);
    }
    if (on_idle_) on_idle_(ino);
  }
}

void ParkedTable::expire(TimePoint now) {
  std::vector<Id> late;
  std::vector<std::pair<Id, pid_t>> interrupted;
  {
    MutexLock lock(mu_);
    for (const auto& [id, entry] : entries_) {
      if (!entry.armed) continue;
      if (entry.deadline <= now) {
        late.push_back(id);
      } else if (entry.interrupted) {
        interrupted.emplace_back(id, entry.pid);
      }
    }
  }
  for (const auto& [id, pid] : interrupted) {
    if (!killed(pid)) continue;
    if (auto request = take(id)) request->error(EINTR);
  }
  for (const Id id : late) {
    if (auto request = take(id)) request->error(ETIMEDOUT);
  }
}

void ParkedTable::close(int error) {
  std::vector<Id> all;
  {
    MutexLock lock(mu_);
    closed_ = error;
    for (const auto& [id, entry] : entries_) {
      if (entry.armed) all.push_back(id);
    }
  }
  for (const Id id : all) {
    if (auto request = take(id)) request->error(error);
  }
}

bool ParkedTable::contains(Id id) const {
  MutexLock lock(mu_);
  return entries_.contains(id);
}

bool ParkedTable::busy(std::uint64_t ino) const {
  MutexLock lock(mu_);
  return busy_.contains(ino);
}

std::size_t ParkedTable::size() const {
  MutexLock lock(mu_);
  return entries_.size();
}

}  // namespace nearbox::fs
