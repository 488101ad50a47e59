// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "sync/ignore/rules.h"

namespace nearbox::ignore {

inline constexpr std::size_t kMaxCachedScopes = 65'536;  // past it they are read again

// What was decided of one path, with nothing borrowed: for `nearbox why` and for callers that keep it.
struct Answer {
  Placement placement = Placement::kSynced;
  RuleKind kind = RuleKind::kNone;
  std::string file;  // where the pattern stands, relative to the root or absolute; "" for rules without one
  std::uint32_t line = 0;  // 0: none
  std::string pattern;     // the line as written, or that of the secret list
  std::string matched;     // the path, or the directory above it that the rule takes
  std::string text;        // one sentence
};

// What has to be looked at again after rules changed.
struct LookAgain {
  bool everything = false;
  std::vector<std::string> paths;  // each with all below it
  bool nothing() const { return !everything && paths.empty(); }
};

// Answers for single paths, and notices when rule files change.
//
// Owns:    the rules and the scopes of the directories that were asked about.
// Threads: one at a time.
// Units:   paths as in Rules.
// Errors:  as Rules. A directory that is not there has no rule files; what is asked of paths in it is still
// answered.
class RuleTree {
 public:
  static base::Result<std::unique_ptr<RuleTree>> open(const std::string& root, RuleOptions options);
  // Over rules that were loaded already.
  static base::Result<std::unique_ptr<RuleTree>> over(std::shared_ptr<const Rules> rules);

  Answer answer(std::string_view path, bool directory);
  // The same without words, for many paths.
  Placement placement(std::string_view path, bool directory);
  const std::shared_ptr<const Rules>& rules() const { return rules_; }
  // The rules that hold below a directory, kept for the next question.
  ScopePtr scope_of(std::string_view directory);

  // Something happened to `path`. Nothing to look at again: it is no rule file.
  base::Result<LookAgain> changed(std::string_view path);
  // Compares all rule files that were read with what is there now, those outside of the root included.
  base::Result<LookAgain> compare();
  // Files outside of the root, or in a `.git`, whose change changes rules: for a watcher.
  std::vector<std::string> outside_files() const;

 private:
  RuleTree(std::shared_ptr<const Rules> rules, base::UniqueFd root);

  Decision decide(std::string_view path, bool directory, Rules::Detail detail);
  void drop_below(std::string_view directory);
  base::Result<void> reload();
  bool rule_files_differ(const Scope& scope, std::string_view directory) const;
  bool rules_above_differ() const;
  base::Result<bool> compare_repo(const Repo& repo, std::string_view directory, LookAgain& again) const;

  std::shared_ptr<const Rules> rules_;
  base::UniqueFd root_;
  CredentialProbe probe_;
  std::map<std::string, ScopePtr, std::less<>> scopes_;
};

}  // namespace nearbox::ignore
