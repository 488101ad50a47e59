// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "client/wire/changes.h"

namespace nearbox::sync {

// The ordered events of our session in the agent: subscribes, resumes by sequence after each
// reconnect, confirms what was handled, hands each event to the listeners exactly once.
//
// Owns:    a thread that sends confirmations; nothing of the link, which outlives it.
// Threads: listeners run on a link thread, one event at a time, in order, and must not block.
//          on_*() come before start(); stop() is not called by a listener.
// Errors:  what breaks the format or the order of events is logged, and the events after the last
//          good one are asked for again, with growing pauses. An agent that does not know the event after
//          which we ask is a copy of the one that told it: the link takes a new session.
class EventStream {
 public:
  using OpDoneFn = std::function<void(const wire::OpDone&)>;
  using ProcExitFn = std::function<void(const wire::ProcExit&)>;
  // The agent is another process than before: every operation and process of the old one whose event
  // did not come has an unknown fate. Called before the first event of the new one; also at first.
  using NewInstanceFn = std::function<void(std::uint64_t instance)>;
  using ChangedFn = std::function<void(const wire::Changed&)>;  // names are valid
  using LostFn = std::function<void(const wire::Lost&)>;        // the path is valid
  using HandledFn = std::function<void(int error)>;
  struct Position {
    std::uint64_t instance = 0;  // 0: no agent was reached yet
    std::uint64_t handled = 0;   // the newest event the listeners have seen
    std::uint64_t newest = 0;    // the newest one that the agent is known to have
  };

  EventStream(api::AgentLink& link, base::Logger& log);
  ~EventStream();

  void on_op_done(OpDoneFn fn);
  void on_proc_exit(ProcExitFn fn);
  void on_new_instance(NewInstanceFn fn);
  void on_changed(ChangedFn fn);
  void on_lost(LostFn fn);
  void start();
  void stop();  // no listener runs when it returns

  Position position() const;
  // Calls fn(0) when the listeners have seen event `seq` of that instance: at once, or on the link thread
  // that brings it. ECONNRESET: the agent is another one by now; ESHUTDOWN after stop(). At most
  // kMaxWaiting wait at a time: EAGAIN.
  void when_handled(std::uint64_t instance, std::uint64_t seq, HandledFn fn);
  static constexpr std::size_t kMaxWaiting = 16384;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nearbox::sync
