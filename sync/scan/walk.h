// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"
#include "sync/ignore/rule_tree.h"
#include "sync/ignore/rules.h"
#include "sync/scan/file_content.h"
#include "sync/scan/scan.h"

namespace nearbox::scan {

// One path that is synced, as stat(2) showed it.
struct Node {
  std::uint64_t path_at = 0;
  std::uint32_t path_size = 0;
  index::StatInfo stat;
};

// What a walk saw.
//
// Owns: the text of all paths.
// Threads: one at a time.
struct Tree {
  std::string paths;
  std::vector<Node> nodes;
  std::vector<LeftOut> left_out;
  std::vector<Problem> problems;
  // Below these, and at them, nothing is known: what the baseline has there stays.
  std::vector<std::string> unknown;
  std::uint64_t left_out_count = 0;
  std::uint64_t problem_count = 0;

  std::string_view path(const Node& node) const {
    return std::string_view(paths).substr(node.path_at, node.path_size);
  }
  void report(ProblemKind kind, std::string_view path, int error = 0);
};

// Lists everything below `root` that is synced. Opens directories, reads rule files, reads no other file but
// those on the conditional part of the secret list.
// `tree` knows the scopes of ScanOptions::only; unused without.
base::Result<Tree> walk(int root, const ignore::Rules& rules, ignore::RuleTree* tree,
                        const ScanOptions& options, const RacyRule& racy, const std::stop_token& stop);

}  // namespace nearbox::scan
