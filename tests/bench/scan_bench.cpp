// SPDX-License-Identifier: Apache-2.0
// nearbox-scan DIR INDEX [ROUNDS]: scans DIR, makes what it found the baseline in INDEX, then scans again
// ROUNDS times, each with rules and index opened anew. One JSON object on stdout. With NEARBOX_BENCH_ALL set
// no rule leaves anything out; NEARBOX_BENCH_PATTERNS=N adds N patterns that match nothing.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "sync/scan/scan.h"

namespace {

using namespace nearbox;
using Clock = std::chrono::steady_clock;

struct Timed {
  scan::ScanResult result;
  double ms = 0;
};

base::Result<Timed> once(const std::string& dir, const std::string& file, bool commit) {
  const auto begin = Clock::now();
  ignore::RuleOptions options;
  if (std::getenv("NEARBOX_BENCH_ALL") != nullptr) options.include = {"*"};
  if (const char* count = std::getenv("NEARBOX_BENCH_PATTERNS")) {  // that match nothing, of the usual forms
    for (int i = 0; i < std::atoi(count); i += 4) {
      const auto n = std::to_string(i);
      for (const auto& line : {"*.x" + n, "/build" + n + "/", "gen" + n + "/**/*.c", "cache-*-" + n}) {
        options.exclude.push_back(line);
      }
    }
  }
  auto rules = ignore::Rules::load(dir, options);
  if (!rules) return std::move(rules).error();
  auto index = index::Index::open(file, {dir, "bench"});
  if (!index) return std::move(index).error();
  auto result = scan::scan(*rules, **index, {}, {});
  if (!result) return std::move(result).error();
  Timed timed{*std::move(result), 0};
  timed.ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
  index::Batch batch;
  if (commit) {
    for (const auto& change : timed.result.changes) {
      if (change.kind == scan::ChangeKind::kDeleted || change.kind == scan::ChangeKind::kLeftOut) {
        batch.remove(change.path);
      } else {
        batch.put(change.path, change.now);
      }
    }
    if (auto done = (*index)->apply(batch); !done) return std::move(done).error();
  }
  if (auto done = (*index)->apply(timed.result.learnt); !done) return std::move(done).error();
  return timed;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 5;
  std::vector<double> ms;
  double first = 0;
  scan::ScanCounts counts;
  std::uint64_t hashed = 0;
  std::size_t changes = 0;
  for (int i = 0; i <= rounds + 1; ++i) {  // the second scan reads what was racy, and is not counted
    auto timed = once(argv[1], argv[2], i == 0);
    if (!timed) {
      std::fprintf(stderr, "%s\n", timed.error().message().c_str());
      return 1;
    }
    if (i == 0) first = timed->ms;
    if (i < 2) continue;
    ms.push_back(timed->ms);
    counts = timed->result.counts;
    hashed += counts.hashed_files;
    changes += timed->result.changes.size();
  }
  std::sort(ms.begin(), ms.end());
  std::printf(
      "{\"first_ms\": %.1f, \"median_ms\": %.1f, \"best_ms\": %.1f, \"files\": %llu, \"directories\": %llu, "
      "\"hashed_again\": %llu, \"changes\": %zu}\n",
      first, ms.empty() ? 0.0 : ms[ms.size() / 2], ms.empty() ? 0.0 : ms.front(),
      static_cast<unsigned long long>(counts.files), static_cast<unsigned long long>(counts.directories),
      static_cast<unsigned long long>(hashed), changes);
  return 0;
}
