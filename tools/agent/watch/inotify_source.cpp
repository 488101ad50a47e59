// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/source.h"

namespace nearbox::agent {

base::Result<std::unique_ptr<WatchSource>> make_inotify_source() {
  return base::errno_error(ENOSYS, "inotify");
}

}  // namespace nearbox::agent
