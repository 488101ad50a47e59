// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "tools/daemon/target.h"

namespace nearbox::daemon {

// Where one daemon keeps its things below the state directory: daemons/KEY/{lock,socket,log,mounts}.
//
// KEY is a digest of the sandbox and of the service it belongs to, so that one id at two services
// means two daemons, and the socket's path stays short.
struct Layout {
  std::string dir;
  std::string lock() const { return dir + "/lock"; }
  std::string socket() const { return dir + "/socket"; }
  std::string log() const { return dir + "/log"; }
  std::string mounts() const { return dir + "/mounts"; }  // "MINOR MOUNTPOINT" a line
};

// Makes the directory (0700). `service`: the control plane's URL, empty for ssh and docker.
base::Result<Layout> layout_for(const Target& target, const std::string& service);
// The layouts of all daemons there have been.
base::Result<std::vector<Layout>> all_layouts();

// Takes the lock that a running daemon holds; EBUSY when one does.
base::Result<base::UniqueFd> lock_daemon(const Layout& layout);

// A mount a daemon made and did not take off the list. `minor` (of its device) tells it from another
// mount that came to the same place later. Mountpoints with a newline are not recorded.
struct RecordedMount {
  unsigned minor = 0;
  std::string mountpoint;
};
std::vector<RecordedMount> recorded_mounts(const Layout& layout);
base::Result<void> record_mounts(const Layout& layout, const std::vector<RecordedMount>& mounts);

}  // namespace nearbox::daemon
