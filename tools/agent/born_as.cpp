// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/born_as.h"

#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client/base/fault.h"

namespace nearbox::agent {
namespace {

// The capabilities of one thread. glibc has no wrapper, and libcap would be one more library.
struct Capabilities {
  __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3]{};
  bool get() { return ::syscall(SYS_capget, &head, data) == 0; }
  bool set() { return ::syscall(SYS_capset, &head, data) == 0; }
};

}  // namespace

BornAs::BornAs(uid_t uid, gid_t gid) {
  holds_ = ::geteuid() == uid && ::getegid() == gid;
  if (holds_ || ::geteuid() != 0 || base::fault::active("agent.no_fsuid")) return;
  Capabilities as_root;
  if (!as_root.get()) return;
  gid_before_ = ::setfsgid(gid);
  changed_ = true;
  if (uid != 0) {
    (void)::setfsuid(uid);
    // Without them a directory that only root may write would refuse: as before, then.
    if (!as_root.set()) (void)::setfsuid(0);
  }
  constexpr auto kAsk = static_cast<uid_t>(-1);  // no id: changes nothing, and the present one is told
  holds_ = static_cast<uid_t>(::setfsuid(kAsk)) == uid && static_cast<gid_t>(::setfsgid(kAsk)) == gid;
}

BornAs::~BornAs() {
  if (!changed_) return;
  (void)::setfsuid(0);
  (void)::setfsgid(static_cast<gid_t>(gid_before_));
}

}  // namespace nearbox::agent
