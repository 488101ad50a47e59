// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>

#include "client/api/agent_link.h"
#include "client/base/log.h"

namespace nearbox::sync {

// The ordered events of our session in the agent: subscribes, resumes by sequence after each
// reconnect, confirms what was handled, hands each event to the listeners exactly once.
//
// Owns:    a thread that sends confirmations; nothing of the link, which outlives it.
// Threads: listeners run on a link thread, one event at a time, in order, and must not block.
//          on_*() come before start(); stop() is not called by a listener.
// Errors:  what breaks the format or the order of events is logged, and the events after the last
//          good one are asked for again, with growing pauses.
class EventStream {
 public:
  using OpDoneFn = std::function<void(const wire::OpDone&)>;
  using ProcExitFn = std::function<void(const wire::ProcExit&)>;
  // The agent is another process than before: every operation and process of the old one whose event
  // did not come has an unknown fate. Called before the first event of the new one; also at first.
  using NewInstanceFn = std::function<void(std::uint64_t instance)>;

  EventStream(api::AgentLink& link, base::Logger& log);
  ~EventStream();

  void on_op_done(OpDoneFn fn);
  void on_proc_exit(ProcExitFn fn);
  void on_new_instance(NewInstanceFn fn);
  void start();
  void stop();  // no listener runs when it returns

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nearbox::sync
