// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <stop_token>

#include "client/api/agent_link.h"
#include "client/base/result.h"
#include "sync/ignore/rules.h"
#include "sync/index/index.h"
#include "sync/push/options.h"
#include "sync/push/report.h"

namespace nearbox::push {

inline constexpr unsigned kMaxSendThreads = 4;
inline constexpr std::size_t kBatchBytes = 1024 * 1024;      // unpacked, of one batch
inline constexpr std::size_t kFirstBatchBytes = 128 * 1024;  // so that the sandbox has work early
inline constexpr std::size_t kBatchEntries = 1024;
inline constexpr std::size_t kListBytes = 1536 * 1024;  // unpacked, of one list of checks or comparisons
inline constexpr int kMaxTries = 3;                     // of one change
inline constexpr int kMaxRounds = 8;                    // of a phase: an agent that restarts each time
inline constexpr std::int64_t kSkewNs = 2'000'000'000;  // clocks this near count as one
inline constexpr std::size_t kMinEmptyFiles = 2;        // a baseline of as many files halts an empty side
inline constexpr std::size_t kCommitEntries = 4096;     // of the index, at the latest
inline constexpr std::chrono::milliseconds kCommitEvery{1000};

// Makes the sandbox's directory current: asks whether what was placed there is as it was, scans what is here
// meanwhile, and sends what differs. What was acknowledged is in the index at once, so that a push that is
// cut goes on where it was.
//
// Threads: runs on the caller's thread and starts its own (docs/threads.md), joined when it returns.
// `baseline`
//          is used by the caller's thread, and by the scan's.
// Errors:  sync.halted_empty; ECANCELED; what opening `remote` says; of the scan, the index and the link. Of
// single paths: in the report. `remote`: as wire::RootOpen has it; made when it is missing.
base::Result<Report> push(api::AgentLink& link, const std::string& remote,
                          const std::shared_ptr<const ignore::Rules>& rules, index::Index& baseline,
                          const Options& options, std::stop_token stop);

}  // namespace nearbox::push
