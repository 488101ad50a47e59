// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/push.h"
#include "tools/agent/fs_path.h"
#include "tools/agent/passwd.h"
#include "tools/agent/push_decide.h"
#include "tools/agent/push_stage.h"

namespace nearbox::agent {

// What is at a place, with the stat that goes with its content.
struct PushSight {
  PushFound found;
  Stat st;
};

wire::PushStamp stamp_of(const Stat& st);

// Reads what is there; `want_content` false: its kind alone. A file that changes while it is read: EAGAIN.
base::Result<PushSight> look_at(const Place& place, bool want_content);
base::Result<wire::Digest> digest_of_file(int fd);

std::int64_t clock_now_ns();
// A time for a file that had `old_ns`: now, and later than that.
std::int64_t later_time(std::int64_t now_ns, std::int64_t old_ns);

// What is complete in the staging directory under a name, and goes away unless it is placed.
//
// Owns:    the name.
// Threads: one at a time.
class Scratch {
 public:
  Scratch(StageDir& dir, std::string name) : dir_(dir), name_(std::move(name)) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::string& name() const { return name_; }
  int dir() const { return dir_.fd(); }
  void placed() { name_.clear(); }

 private:
  StageDir& dir_;
  std::string name_;
};

// Gives a scratch file its name, over or beside what is there. `sight` is what was decided upon.
// Errors:  EEXIST: something else is there by now; look and decide again.
struct Placed {
  wire::PushOutcome outcome = wire::PushOutcome::kDone;
  std::string kept_as;
};
base::Result<Placed> place_scratch(const wire::PushEntry& entry, const Place& place, const PushSight& sight,
                                   PushStep step, Scratch& scratch);

// Takes what is at a place away, if it still is what was seen.
base::Result<bool> take_away(const Place& place, const PushSight& sight, StageDir& stage);

}  // namespace nearbox::agent
