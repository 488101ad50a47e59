// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "tools/agent/listener.h"
#include "tools/agent/state_file.h"

namespace nearbox::agent {

struct ServeCommand {
  ListenKind kind = ListenKind::kTcp;
  std::uint16_t port = 0;
  std::string state_dir;
  std::string user;
  std::chrono::seconds linger{300};
  std::chrono::seconds grace{120};
  int ready_fd = -1;  // told "ok" or the reason of a failure, then closed
};

// Runs the agent until SIGTERM, SIGINT, or its linger time is over. Returns the exit code.
// `tcp` and `local` make the carriers of the two kinds of connection.
int serve_command(const ServeCommand& command, const CarrierMaker& tcp, const CarrierMaker& local);

}  // namespace nearbox::agent
