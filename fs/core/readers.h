// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "client/base/mutex.h"

namespace nearbox::fs {

// What local programs may have fetched from the sandbox. What is cached is never refused.
struct ReadPolicy {
  std::vector<std::string> deny;              // names of programs, with * and ? as in shells
  std::optional<std::uint64_t> max_per_hour;  // bytes, of each program
  bool limits() const { return !deny.empty() || max_per_hour.has_value(); }
};

struct ProgramStats {
  std::string name;
  std::uint64_t fetched_bytes = 0;  // came over the link and were read by it first
  std::uint64_t refused = 0;        // reads
};

// Who reads: counts what each local program has fetched, and refuses what the policy does not allow, so
// that an indexer or a backup does not pull a whole sandbox over the link.
//
// A program is known by the name of its executable, or of its thread where that may not be seen.
//
// Owns:    counters of kMaxPrograms programs; further ones count together as "others".
// Threads: any.
// Source:  proc(5): /proc/PID/exe, /proc/PID/comm, which take thread ids too.
class Readers {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kMaxPrograms = 256;

  explicit Readers(ReadPolicy policy = {});

  bool limits() const { return policy_.limits(); }
  static std::string program(pid_t pid);  // "unknown" for one of another pid namespace
  // May `program` have bytes fetched now? 0, or EACCES (denied) or EDQUOT (its hour is used up), counted.
  int admit(const std::string& program, Clock::time_point now = Clock::now()) EXCLUDES(mu_);
  void fetched(const std::string& program, std::uint64_t bytes, Clock::time_point now = Clock::now())
      EXCLUDES(mu_);
  std::vector<ProgramStats> programs() const EXCLUDES(mu_);  // who fetched most comes first

 private:
  struct Program {
    std::uint64_t fetched_bytes = 0, refused = 0;
    double allowance = 0;  // bytes; refilled with max_per_hour an hour, up to that
    Clock::time_point refilled;
  };
  Program& find_locked(const std::string& program, Clock::time_point now) REQUIRES(mu_);

  const ReadPolicy policy_;
  mutable base::Mutex mu_;  // leaf
  std::map<std::string, Program> programs_ GUARDED_BY(mu_);
};

}  // namespace nearbox::fs
