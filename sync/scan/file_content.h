// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <stop_token>
#include <string>
#include <string_view>

#include "client/base/result.h"
#include "sync/index/index.h"

struct stat;

namespace nearbox::scan {

// When two states of a file may bear the same stamps.
class RacyRule {
 public:
  explicit RacyRule(std::int64_t granularity_ns);

  // Whether content whose reading began at `read_ns` may have been changed once more without a trace.
  bool racy(const index::StatInfo& stat, std::int64_t read_ns) const;
  std::int64_t now_ns() const;  // on the clock that stamps files
  std::int64_t rounded(std::int64_t stamp_ns) const;

 private:
  std::int64_t granularity_ns_;  // given; 0: none was
  std::int64_t tick_ns_;
};

index::StatInfo stat_info(const struct stat& st, const RacyRule& rule);

// What was read of a file or symlink.
struct Content {
  index::StatInfo stat;
  index::Digest digest{};
  bool racy = false;
  std::string target;  // of a symlink
};

// Reads `path` below `root` and its digest. Reads again when it changes meanwhile.
// Errors: EAGAIN it changed each time; ESTALE it is neither a file nor a symlink now; ECANCELED; what open(2)
// and
//         read(2) say.
base::Result<Content> read_content(int root, std::string_view path, index::Type type, const RacyRule& rule,
                                   std::atomic<std::uint64_t>* counter, const std::stop_token& stop);

index::Digest digest_of(std::string_view bytes);

}  // namespace nearbox::scan
