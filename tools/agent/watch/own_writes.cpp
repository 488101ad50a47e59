// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/own_writes.h"

#include <cerrno>
#include <linux/aio_abi.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include "client/base/fault.h"
#include "tools/agent/node_stat.h"

namespace nearbox::agent {
namespace {

// Of one thread: one write at a time.
class AioContext {
 public:
  AioContext() : ok_(::syscall(SYS_io_setup, 1, &context_) == 0) {}
  ~AioContext() {
    if (ok_) (void)::syscall(SYS_io_destroy, context_);
  }
  AioContext(const AioContext&) = delete;
  AioContext& operator=(const AioContext&) = delete;

  // The result of the write, or -ENOSYS when it was not begun.
  std::int64_t write(int fd, wire::ByteView data, std::uint64_t offset) const {
    if (!ok_) return -ENOSYS;
    struct iocb one {};
    one.aio_lio_opcode = IOCB_CMD_PWRITE;
    one.aio_fildes = static_cast<std::uint32_t>(fd);
    one.aio_buf = reinterpret_cast<std::uintptr_t>(data.data());
    one.aio_nbytes = data.size();
    one.aio_offset = static_cast<std::int64_t>(offset);
    struct iocb* all[] = {&one};
    if (::syscall(SYS_io_submit, context_, 1, all) != 1) return -ENOSYS;
    struct io_event event {};
    while (::syscall(SYS_io_getevents, context_, 1, 1, &event, nullptr) != 1) {
      if (errno != EINTR) return -EIO;
    }
    return event.res;
  }

 private:
  aio_context_t context_ = 0;
  const bool ok_;
};

}  // namespace

base::Result<std::size_t> OwnWrites::write(int fd, wire::ByteView data, std::uint64_t offset) {
  if (base::fault::active("agent.no_quiet_writes")) return base::errno_error(ENOSYS, "write");
  static thread_local const AioContext context;
  const auto done = context.write(fd, data, offset);
  if (done < 0) return base::errno_error(static_cast<int>(-done), "write");
  return static_cast<std::size_t>(done);
}

void OwnWrites::forget_locked() {
  marks_.clear();
  closes_.clear();
  begun_.clear();
}

void OwnWrites::begin(int inotify) {
  base::MutexLock lock(mu_);
  inotify_ = inotify;
  if (!object_) object_.reset(::memfd_create("nearbox-mark", MFD_CLOEXEC));
  forget_locked();
  wanted_.store(static_cast<bool>(object_));
}

void OwnWrites::end() {
  base::MutexLock lock(mu_);
  wanted_.store(false);
  inotify_ = -1;
  forget_locked();
}

bool OwnWrites::put_mark(Number close, bool first) {
  base::MutexLock lock(mu_);
  if (inotify_ < 0 || closes_.count(close) + begun_.count(close) == 0) return false;
  const auto path = "/proc/self/fd/" + std::to_string(object_.get());
  const int wd = ::inotify_add_watch(inotify_, path.c_str(), IN_DELETE_SELF);
  if (wd < 0) return false;
  marks_[wd] = {close, first};  // before its event can be read
  (void)::inotify_rm_watch(inotify_, wd);
  return true;
}

void OwnWrites::close(base::UniqueFd fd, int dir, const std::string& name) {
  struct stat st {};
  Number number = 0;
  if (::fstat(dir, &st) == 0) {
    base::MutexLock lock(mu_);
    if (inotify_ >= 0 && closes_.size() < kMaxOwnCloses) {
      number = next_++;
      closes_.emplace(number, Close{node_of(st), name});
    }
  }
  const bool marked = number != 0 && put_mark(number, true);
  fd.reset();
  if (marked && put_mark(number, false)) return;
  base::MutexLock lock(mu_);
  closes_.erase(number);
  begun_.erase(number);
}

bool OwnWrites::mark(int wd) {
  base::MutexLock lock(mu_);
  const auto it = marks_.find(wd);
  if (it == marks_.end()) return false;
  const auto [number, first] = it->second;
  marks_.erase(it);
  if (!first) {
    begun_.erase(number);
  } else if (auto close = closes_.extract(number)) {
    begun_.insert(std::move(close));
  }
  return true;
}

bool OwnWrites::own_close(wire::NodeId dir, std::string_view name) {
  base::MutexLock lock(mu_);
  for (auto& [number, close] : begun_) {
    if (close.seen || close.dir != dir || close.name != name) continue;
    close.seen = true;
    return true;
  }
  return false;
}

void OwnWrites::lost() {
  base::MutexLock lock(mu_);
  forget_locked();
}

}  // namespace nearbox::agent
