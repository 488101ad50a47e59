// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "client/base/fault.h"
#include "tools/agent/watch/watcher.h"

namespace nearbox::agent {

// A call that the thread answers.
struct Watcher::Call {
  const void* owner = nullptr;
  EventLog* log = nullptr;  // null: a barrier
  std::uint32_t number = 0;
  RootPtr root;
  // Guarded by mu_.
  bool done = false;
  bool given_up = false;
  int error = 0;
  wire::WatchReply watch;
  wire::BarrierReply barrier;
};

class Watcher::Sink final : public HintSink {
 public:
  // `everything`: too much waits to be looked at by name at all.
  explicit Sink(Watcher& watcher, bool everything = false)
      : w_(watcher), now_(Clock::now()), everything_(everything) {}
  void hint(const Hint& hint) override {
    if (base::fault::active("agent.drop_changes", std::string(hint.name))) return;
    bool kept = in_storm(hint) || w_.names_.add(hint, now_);
    if ((hint.flags & kHintListing) != 0) {
      kept =
          w_.names_.add({hint.dir, {}, kHintLook | (hint.flags & kHintAtOnce), {}, hint.place}, now_) && kept;
    }
    if (!kept) overflow("too many names");
  }
  void overflow(const char* why) override {
    w_.overflowed_ = true;
    w_.why_lost_ = why;
  }
  void check_roots() override { w_.check_roots_ = true; }
  bool untold(wire::NodeId dir, std::string_view name, std::string_view target) override {
    return (w_.names_.waiting_flags(dir, name) & kHintFresh) != 0 || w_.looker_.missed(target);
  }

 private:
  bool in_storm(const Hint& hint);
  bool begin_storm(wire::NodeId dir, const HandleRef& place);
  bool count_now(const Coalescer::Item& item);

  Watcher& w_;
  const Clock::time_point now_;
  const bool everything_;
  wire::NodeId dir_;  // whose descriptor it is
  base::UniqueFd fd_;
};

}  // namespace nearbox::agent
