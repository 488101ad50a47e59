// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "sync/scan/scan.h"

namespace nearbox::push {

// What is removed in the sandbox.
enum class Deletes : std::uint8_t {
  kNone,
  kTracked,  // what an earlier sync placed there
  kMirror,   // whatever is synced and not here
};

// What becomes of a path that both sides changed since the last sync.
enum class Conflicts : std::uint8_t {
  kKeepBoth,      // the local one gets the name, the sandbox's another one beside
  kPreferLocal,   // the sandbox's is replaced
  kPreferRemote,  // the sandbox's stays
  kFail,          // the same, and the sync says that it failed
};

// How far a sync is, for people and programs that wait.
struct Progress {
  enum class Phase : std::uint8_t { kScan, kSend } phase = Phase::kScan;
  std::uint64_t files_done = 0, files_total = 0;  // of those that change
  std::uint64_t bytes_done = 0, bytes_total = 0;  // of their contents
  std::uint64_t bytes_sent = 0;                   // on the link
};

struct Options {
  Deletes deletes = Deletes::kTracked;
  Conflicts conflicts = Conflicts::kKeepBoth;
  scan::ScanOptions scan;
  bool dry_run = false;
  std::function<void(const Progress&)> progress;  // on the caller's thread; may be empty
};

}  // namespace nearbox::push
