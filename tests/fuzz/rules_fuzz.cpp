// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string_view>

#include "sync/ignore/pattern.h"
#include "sync/ignore/secrets.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

// The first line is a path, the rest a rule file.
NEARBOX_FUZZ(bytes) {
  const auto text = wire::as_text(bytes);
  const auto path = text.substr(0, text.find('\n'));
  const auto rules = text.substr(std::min(text.size(), path.size() + 1));
  (void)ignore::carries_credential(text);
  (void)ignore::find_secret(path, false);
  (void)ignore::is_dot_git(path);
  for (const auto fold : {ignore::Case::kSensitive, ignore::Case::kFold}) {
    const auto list = ignore::parse_patterns(rules, "rules", "", fold);
    const ignore::PathQuery query{path, true};
    const auto* last = list.last_match(query);
    NEARBOX_FUZZ_CHECK(last == nullptr || last->matches(path, query.name(), true));
    for (const auto& pattern : list.patterns) {
      if (!pattern.matches(path, query.name(), true)) continue;
      // What would be found below a directory must never be pruned.
      for (auto slash = path.find('/'); slash != std::string_view::npos; slash = path.find('/', slash + 1)) {
        NEARBOX_FUZZ_CHECK(pattern.may_match_below(path.substr(0, slash)));
      }
    }
  }
}
