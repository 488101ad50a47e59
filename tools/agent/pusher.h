// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "client/channel/mux_server.h"
#include "client/wire/push.h"
#include "tools/agent/fs_path.h"
#include "tools/agent/passwd.h"
#include "tools/agent/push_stage.h"
#include "tools/agent/roots.h"
#include "tools/agent/worker_pool.h"

namespace nearbox::agent {

inline constexpr std::size_t kPushThreads = 4;  // batches at one time, of one session

// Answers the calls of a push (client/wire/push.h) for one session.
//
// Owns:    its threads and the staging directories.
// Threads: any may call; answers come from its threads. stop() before what `changed` uses goes.
class Pusher {
 public:
  // Something at a path below a root is another one now. `st`: what; nullptr: nothing.
  using Changed =
      std::function<void(const RootPtr& root, const std::string& path, const Stat* st, bool made)>;
  using Open = std::function<base::Result<wire::RootReply>(const wire::RootOpen&)>;
  Pusher(const Identity& who, RootTable& roots, Open open, Changed changed);

  void begin(wire::PushBegin call, channel::ResponderPtr responder);
  void compare(wire::PushPacked call, channel::ResponderPtr responder);
  void apply(wire::PushPacked call, channel::ResponderPtr responder);
  void part(wire::PushPart call, channel::ResponderPtr responder);
  void list(wire::PushList call, channel::ResponderPtr responder);
  void chunks(wire::PushChunks call, channel::ResponderPtr responder);
  void stop() { pool_.stop(); }

 private:
  template <class Job>
  void run(const channel::ResponderPtr& responder, Job job);

  const Identity& who_;
  RootTable& roots_;
  const Open open_;
  const Changed changed_;
  StageDirs stages_;
  WorkerPool pool_;  // last: its threads use the others
};

}  // namespace nearbox::agent
