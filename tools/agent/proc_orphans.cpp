// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/proc_orphans.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "client/base/mutex.h"

namespace nearbox::agent {
namespace {

struct Orphans {
  base::Mutex mu;  // rank: leaf
  std::vector<pid_t> pids GUARDED_BY(mu);
};

Orphans& orphans() {
  static Orphans* const all = new Orphans;  // as long as the last thread
  return *all;
}

// ---- in the draining process: system calls only --------------------------------------------------

// Closes all descriptors but those to drain; they are sorted.
void close_others(const std::vector<pollfd>& keep) {
#if !defined(SYS_close_range)
#define SYS_close_range 436
#endif
  unsigned from = 0;
  for (const auto& entry : keep) {
    const auto fd = static_cast<unsigned>(entry.fd);
    if (fd > from && ::syscall(SYS_close_range, from, fd - 1, 0) != 0) {
      for (unsigned other = from; other < fd; ++other) ::close(static_cast<int>(other));
    }
    from = fd + 1;
  }
  (void)::syscall(SYS_close_range, from, ~0U, 0);
}

[[noreturn]] void drain(std::vector<pollfd>& fds, char* buffer, std::size_t size) {
  (void)::setsid();
  (void)::prctl(PR_SET_NAME, "nearbox-drain");
  close_others(fds);
  std::size_t open = fds.size();
  while (open > 0) {
    if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) break;
    for (auto& entry : fds) {
      if (entry.fd < 0 || entry.revents == 0) continue;
      const auto n = ::read(entry.fd, buffer, size);
      if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR))) continue;
      ::close(entry.fd);
      entry.fd = -1;  // poll() passes over it
      --open;
    }
  }
  ::_exit(0);
}

}  // namespace

void adopt_orphan(pid_t pid) {
  Orphans& all = orphans();
  base::MutexLock lock(all.mu);
  all.pids.push_back(pid);
}

void reap_orphans() {
  Orphans& all = orphans();
  base::MutexLock lock(all.mu);
  std::erase_if(all.pids, [](pid_t pid) {
    const pid_t got = ::waitpid(pid, nullptr, WNOHANG);
    return got == pid || (got < 0 && errno == ECHILD);
  });
}

void drain_elsewhere(std::vector<base::UniqueFd> fds) {
  if (fds.empty()) return;
  std::vector<pollfd> entries;
  for (const auto& fd : fds) {
    if (entries.size() < kMaxDrained) entries.push_back({fd.get(), POLLIN, 0});
  }
  std::sort(entries.begin(), entries.end(), [](const pollfd& a, const pollfd& b) { return a.fd < b.fd; });
  static char buffer[64 * 1024];  // written in the child alone, each has its own copy
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  (void)::pthread_sigmask(SIG_SETMASK, &all, &before);  // inherited: only KILL ends the drain early
  const pid_t pid = ::fork();
  if (pid == 0) drain(entries, buffer, sizeof buffer);
  (void)::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid > 0) adopt_orphan(pid);
}

}  // namespace nearbox::agent
