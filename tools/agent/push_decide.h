// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "client/base/fault.h"
#include "client/wire/push.h"

namespace nearbox::agent {

// What lies at the path of a change.
struct PushFound {
  enum class Kind : std::uint8_t { kNothing, kFile, kSymlink, kDirectory, kOther };
  Kind kind = Kind::kNothing;
  wire::Digest digest{};  // of a file's bytes or a symlink's target
  bool movable() const { return kind == Kind::kFile || kind == Kind::kSymlink; }
};

enum class PushStep : std::uint8_t {
  kAlready,   // it is as it shall be
  kMake,      // nothing is there
  kReplace,   // what is there is what was expected, or may go
  kKeepBoth,  // move it aside, then make
  kLeave,
};

inline bool has_base(const wire::PushEntry& entry, const PushFound& found) {
  if (base::fault::active("agent.push_no_base_check", entry.path)) return true;
  const bool link = entry.base_type == wire::PushType::kSymlink;
  return found.kind == (link ? PushFound::Kind::kSymlink : PushFound::Kind::kFile) &&
         found.digest == entry.base;
}

inline bool may_go(const wire::PushEntry& entry, const PushFound& found) {
  return entry.expect == wire::PushExpect::kAny || entry.conflict == wire::PushConflict::kOverwrite ||
         (entry.expect == wire::PushExpect::kBase && has_base(entry, found));
}

// Of a file or symlink that shall be at the path. Pure.
inline PushStep decide_push(const wire::PushEntry& entry, const PushFound& found) {
  using Kind = PushFound::Kind;
  const auto wanted = entry.kind == wire::PushKind::kSymlink ? Kind::kSymlink : Kind::kFile;
  if (found.kind == wanted && found.digest == entry.digest) return PushStep::kAlready;
  if (found.kind == Kind::kNothing) {
    // Gone since: nothing is lost when it comes again, unless the sandbox's will counts.
    const bool gone = entry.expect == wire::PushExpect::kBase && entry.conflict == wire::PushConflict::kLeave;
    return gone ? PushStep::kLeave : PushStep::kMake;
  }
  if (!found.movable()) return PushStep::kLeave;
  if (may_go(entry, found)) return PushStep::kReplace;
  return entry.conflict == wire::PushConflict::kKeepBoth ? PushStep::kKeepBoth : PushStep::kLeave;
}

// Of a file or symlink that shall be gone. Pure.
inline PushStep decide_delete(const wire::PushEntry& entry, const PushFound& found) {
  if (found.kind == PushFound::Kind::kNothing) return PushStep::kAlready;
  return found.movable() && may_go(entry, found) ? PushStep::kReplace : PushStep::kLeave;
}

}  // namespace nearbox::agent
