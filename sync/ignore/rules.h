// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/api/state_dir.h"
#include "client/base/result.h"
#include "sync/ignore/git_repo.h"
#include "sync/ignore/pattern.h"

namespace nearbox::ignore {

// Where the bytes of a path live (docs/ignore.md).
enum class Placement : std::uint8_t {
  kSynced,  // on both sides
  kRemote,  // in the sandbox alone
  kLocal,   // on this machine alone
};

// What decides, strongest first: a rule further down is asked only when none above it has an opinion.
enum class RuleKind : std::uint8_t {
  kOwnState,       // `.nearbox` at the root
  kDotGit,         // `.git`, unless an include pattern names it
  kInclude,        // explicit include
  kExclude,        // explicit exclude
  kSecret,         // the secret list
  kTracked,        // tracked by git, or a directory with such files
  kNearboxIgnore,  // a `.nearboxignore`
  kGitIgnore,      // git's rules
  kDefault,        // node_modules/
  kNone,           // no rule: synced
};
std::string_view name_of(RuleKind kind);
std::string_view name_of(Placement placement);
// The word of a sync's `skipped.byReason` for what a rule leaves out.
std::string_view skip_reason(RuleKind kind);

struct RuleOptions {
  std::vector<std::string> include;
  std::vector<std::string> exclude;
  bool gitignore = true;  // false: git's rules are left out of the order
  bool secrets = false;   // true: the secret list is left out of the order
  api::Environment env = api::process_environment();
};

// What is decided of one path. The views live as long as the scope and the path that were given.
struct Decision {
  Placement placement = Placement::kSynced;
  RuleKind kind = RuleKind::kNone;
  const PatternList* list = nullptr;    // where the pattern stands
  const Pattern* pattern = nullptr;     // the line
  std::string_view secret;              // the line of the secret list
  bool secret_unless_harmless = false;  // SecretRule::unless_harmless of that line
  std::string_view matched;             // what the rule matched: the path, or a directory above it
  // Of a directory: whether something below it may be synced, so that it has to be looked into.
  bool enter = true;

  bool synced() const { return placement == Placement::kSynced; }
};

// The rules that hold below one directory.
//
// Owns:    the rule files of that directory, and a share of the scopes above it.
// Threads: any; never changed once it is made.
struct Scope {
  std::shared_ptr<const Scope> parent;
  std::shared_ptr<const Repo> repo;
  std::string path;  // with the way from the enclosing work tree's top to the root before it
  std::optional<PatternList> git;
  std::optional<PatternList> nearbox;
  Signature git_signature;
  Signature nearbox_signature;
  bool repo_top = false;
  // What holds for everything below, as far as no stronger rule says otherwise.
  std::optional<Decision> inherited;
  std::string inherited_matched;
};
using ScopePtr = std::shared_ptr<const Scope>;

// Which rule files a directory holds, for callers that have listed it already.
struct RuleFilesFound {
  bool gitignore = true;
  bool nearboxignore = true;
  bool dot_git = true;
};

// True when the file at a path below the root carries a credential, or cannot be read. Asked for files on the
// conditional part of the secret list that git tracks.
using CredentialProbe = std::function<bool(std::string_view path)>;

// All rules of one root, in the one order.
//
// Owns:    the patterns of the command line and the scopes down to the root; the rest is owned by scopes.
// Threads: any.
// Errors:  load() fails when the root cannot be opened. What else cannot be read is a problem in words,
//          and counts as empty, as git has it.
// Units:   paths are relative to the root, without `.`, `..` or slashes at either end; "" is the root.
class Rules {
 public:
  static base::Result<std::shared_ptr<const Rules>> load(const std::string& root, RuleOptions options);

  const ScopePtr& root_scope() const { return root_scope_; }
  const std::string& root() const { return root_; }
  const RuleOptions& options() const { return options_; }
  const std::vector<std::string>& problems() const { return problems_; }

  // The scope of directory `path`, open as `dir`, whose own directory has `parent`. Call it for directories
  // with Decision::enter alone.
  ScopePtr enter(const ScopePtr& parent, std::string_view path, int dir, RuleFilesFound found,
                 std::vector<std::string>& problems) const;

  // `parent` is the scope of the directory that holds `path`. kExplain also finds out whether git tracks what
  // would be synced anyway.
  enum class Detail : std::uint8_t { kPlacement, kExplain };
  Decision decide(const Scope& parent, std::string_view path, bool directory, const CredentialProbe& probe,
                  Detail detail = Detail::kPlacement) const;

  // The same rules read anew.
  base::Result<std::shared_ptr<const Rules>> reload() const { return load(root_, options_); }

 private:
  struct Verdict;  // a decision, and what it means for what lies below
  class Judge;

  Rules(std::string root, RuleOptions options);
  base::Result<void> load_root();
  std::shared_ptr<const Repo> load_enclosing();
  void read_lists(Scope& scope, int dir, RuleFilesFound found, std::vector<std::string>& problems) const;

  std::string root_;
  std::string prefix_;  // from the enclosing work tree's top to the root, "a/b/", or ""
  RuleOptions options_;
  PatternList include_;
  PatternList exclude_;
  PatternList defaults_;
  ScopePtr above_root_;  // of the directory that holds the root, when a work tree goes on there
  ScopePtr root_scope_;
  std::vector<std::string> problems_;
};

// A probe that reads the file below `root` without following symlinks. The descriptor must outlive it.
CredentialProbe credential_probe(int root);

// One sentence for people: which rule, in which file and line.
std::string describe(const Decision& decision, std::string_view path);

}  // namespace nearbox::ignore
