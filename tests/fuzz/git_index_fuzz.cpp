// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/git_index.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

NEARBOX_FUZZ(bytes) {
  const auto text = wire::as_text(bytes);
  for (const auto hash : {ignore::ObjectHash::kSha1, ignore::ObjectHash::kSha256}) {
    const auto set = ignore::parse_git_index(text, hash);
    if (!set) continue;
    for (std::size_t i = 0; i < set->size(); ++i) {
      NEARBOX_FUZZ_CHECK(!set->at(i).empty() && set->contains(set->at(i)));
      NEARBOX_FUZZ_CHECK(i == 0 || set->at(i - 1) < set->at(i));
    }
  }
}
