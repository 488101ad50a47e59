// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/rules.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <utility>

#include <climits>

#include "client/base/unique_fd.h"
#include "sync/ignore/rule_file.h"
#include "sync/ignore/secrets.h"

namespace nearbox::ignore {
namespace {

constexpr const char* kGitIgnoreName = ".gitignore";
constexpr const char* kNearboxIgnoreName = ".nearboxignore";
constexpr std::string_view kOwnStateName = ".nearbox";

struct Found {
  const PatternList* list = nullptr;
  const Pattern* pattern = nullptr;
};

Found last_match(const std::optional<PatternList>& list, const PathQuery& query) {
  if (!list) return {};
  return {&*list, list->last_match(query)};
}

std::string base_of(std::string_view path) { return path.empty() ? std::string() : std::string(path) + "/"; }

}  // namespace

std::string_view name_of(RuleKind kind) {
  switch (kind) {
    case RuleKind::kOwnState:
      return "own-state";
    case RuleKind::kDotGit:
      return "dot-git";
    case RuleKind::kInclude:
      return "include";
    case RuleKind::kExclude:
      return "exclude";
    case RuleKind::kSecret:
      return "secret";
    case RuleKind::kTracked:
      return "tracked";
    case RuleKind::kNearboxIgnore:
      return "nearboxignore";
    case RuleKind::kGitIgnore:
      return "gitignore";
    case RuleKind::kDefault:
      return "default";
    case RuleKind::kNone:
      break;
  }
  return "none";
}

std::string_view name_of(Placement placement) {
  return placement == Placement::kSynced ? "synced" : placement == Placement::kRemote ? "remote" : "local";
}

std::string_view skip_reason(RuleKind kind) {
  switch (kind) {
    case RuleKind::kExclude:
    case RuleKind::kNearboxIgnore:
      return "pattern";
    case RuleKind::kSecret:
      return "secret";
    case RuleKind::kGitIgnore:
      return "gitignore";
    default:
      return "default-exclude";
  }
}

struct Rules::Verdict {
  Decision decision;
  std::optional<Decision> below;  // what the directory's content inherits
};

// Asks the rules about one path, strongest first.
class Rules::Judge {
 public:
  Judge(const Rules& rules, const Scope& scope, std::string_view path, bool directory,
        const CredentialProbe& probe, Detail detail)
      : rules_(rules), scope_(scope), path_(path), directory_(directory), probe_(probe), detail_(detail) {
    if (!rules_.prefix_.empty()) full_ = rules_.prefix_ + std::string(path);
  }

  // Innermost directory first, then info/exclude, then core.excludesFile. Rules of a work tree end where
  // another begins.
  Found git_match() const {
    for (const Scope* scope = &scope_; scope != nullptr && scope->repo == scope_.repo;
         scope = scope->parent.get()) {
      const auto found = last_match(scope->git, full_query());
      if (found.pattern != nullptr) return found;
    }
    for (const auto* list : {&scope_.repo->exclude, &scope_.repo->global}) {
      if (const auto* pattern = list->last_match(full_query())) return {list, pattern};
    }
    return {};
  }

  Verdict judge() {
    Verdict verdict = decide();
    if (directory_ && !verdict.decision.synced())
      verdict.decision.enter = may_hold_synced(verdict.decision.kind);
    return verdict;
  }

 private:
  // With the way from the enclosing work tree's top.
  std::string_view full() const { return rules_.prefix_.empty() ? path_ : std::string_view(full_); }
  PathQuery query() const { return {path_, directory_}; }
  PathQuery full_query() const { return {full(), directory_}; }
  std::string_view in_repo() const { return full().substr(scope_.repo->base.size()); }
  bool inherits(RuleKind kind) const { return scope_.inherited && scope_.inherited->kind == kind; }

  Decision plain(Placement placement, RuleKind kind) const {
    Decision decision;
    decision.placement = placement;
    decision.kind = kind;
    decision.matched = path_;
    return decision;
  }
  Decision by(const Found& found, Placement placement, RuleKind kind) const {
    Decision decision = plain(placement, kind);
    decision.list = found.list;
    decision.pattern = found.pattern;
    return decision;
  }
  Verdict whole(const Decision& decision) const { return {decision, decision}; }
  Verdict inherited() const { return whole(*scope_.inherited); }

  bool tracked() {
    const auto& set = scope_.repo->tracked;
    if (!tracked_) tracked_ = set.contains(in_repo()) || (directory_ && set.any_below(in_repo()));
    return *tracked_;
  }

  Verdict decide() {
    if (inherits(RuleKind::kOwnState)) return inherited();
    if (path_ == kOwnStateName) return whole(plain(Placement::kLocal, RuleKind::kOwnState));
    if (inherits(RuleKind::kDotGit) || is_dot_git(query().name())) {
      const Found named{&rules_.include_, rules_.include_.last_match(query())};
      if (named.pattern != nullptr && !named.pattern->negated() &&
          named.pattern->text().find(".git") != std::string::npos) {
        return whole(by(named, Placement::kSynced, RuleKind::kInclude));
      }
      return inherits(RuleKind::kDotGit) ? inherited() : whole(plain(Placement::kLocal, RuleKind::kDotGit));
    }
    if (inherits(RuleKind::kInclude)) return inherited();
    if (const Found found{&rules_.include_, rules_.include_.last_match(query())};
        found.pattern != nullptr && !found.pattern->negated()) {
      return whole(by(found, Placement::kSynced, RuleKind::kInclude));
    }
    if (inherits(RuleKind::kExclude)) return inherited();
    if (const Found found{&rules_.exclude_, rules_.exclude_.last_match(query())};
        found.pattern != nullptr && !found.pattern->negated()) {
      return whole(by(found, Placement::kRemote, RuleKind::kExclude));
    }
    return decide_secret();
  }

  Verdict decide_secret() {
    if (rules_.options_.secrets) return decide_tracked(std::nullopt);
    std::optional<Decision> secret;
    bool unless_harmless = false;
    if (inherits(RuleKind::kSecret)) {
      secret = scope_.inherited;
      unless_harmless = scope_.inherited->secret_unless_harmless;
    } else if (const auto* rule = find_secret(path_, directory_)) {
      secret = plain(Placement::kLocal, RuleKind::kSecret);
      secret->secret = rule->text;
      secret->secret_unless_harmless = unless_harmless = rule->unless_harmless;
    }
    if (!secret) return decide_tracked(std::nullopt);
    // What git tracks is already where others can read it, unless somebody put a credential into it.
    const bool harmless = unless_harmless && tracked() && (directory_ || !probe_ || !probe_(path_));
    return harmless ? decide_tracked(secret) : whole(*secret);
  }

  // `secret` holds for those below that git does not track.
  Verdict decide_tracked(const std::optional<Decision>& secret) {
    Verdict low = decide_ignored();
    if (secret) low.below = secret;
    const bool matters = !low.decision.synced() || secret || detail_ == Detail::kExplain;
    if (matters && tracked()) low.decision = plain(Placement::kSynced, RuleKind::kTracked);
    return low;
  }

  Verdict decide_ignored() {
    if (inherits(RuleKind::kNearboxIgnore)) return inherited();
    for (const Scope* scope = &scope_; scope != nullptr; scope = scope->parent.get()) {
      const auto found = last_match(scope->nearbox, full_query());
      if (found.pattern != nullptr) return from_pattern(found, RuleKind::kNearboxIgnore);
    }
    if (inherits(RuleKind::kGitIgnore)) return inherited();
    if (rules_.options_.gitignore) {
      const auto found = git_match();
      if (found.pattern != nullptr) return from_pattern(found, RuleKind::kGitIgnore);
    }
    if (inherits(RuleKind::kDefault)) return inherited();
    const Found found{&rules_.defaults_, rules_.defaults_.last_match(query())};
    if (found.pattern != nullptr) return from_pattern(found, RuleKind::kDefault);
    return {plain(Placement::kSynced, RuleKind::kNone), std::nullopt};
  }

  // A negated pattern settles this path alone; those below are asked about one by one, as git does.
  Verdict from_pattern(const Found& found, RuleKind kind) const {
    if (found.pattern->negated()) return {by(found, Placement::kSynced, kind), std::nullopt};
    return whole(by(found, Placement::kRemote, kind));
  }

  // Whether below this directory, which is not synced because of `kind`, a stronger rule may say otherwise.
  bool may_hold_synced(RuleKind kind) const {
    if (kind == RuleKind::kOwnState) return false;
    if (kind == RuleKind::kDotGit) {
      return std::any_of(
          rules_.include_.patterns.begin(), rules_.include_.patterns.end(), [&](const Pattern& p) {
            return !p.negated() && p.text().find(".git") != std::string::npos && p.may_match_below(path_);
          });
    }
    if (rules_.include_.may_match_below(path_)) return true;
    if (kind <= RuleKind::kNearboxIgnore) return false;
    for (const Scope* scope = &scope_; scope != nullptr; scope = scope->parent.get()) {
      if (scope->nearbox && scope->nearbox->may_negate_below(full())) return true;
    }
    return false;
  }

  const Rules& rules_;
  const Scope& scope_;
  std::string_view path_;
  std::string full_;
  bool directory_;
  const CredentialProbe& probe_;
  Detail detail_;
  std::optional<bool> tracked_;
};

Rules::Rules(std::string root, RuleOptions options)
    : root_(std::move(root)),
      options_(std::move(options)),
      include_(parse_patterns(options_.include, "include")),
      exclude_(parse_patterns(options_.exclude, "exclude")),
      defaults_(parse_patterns({"node_modules/"}, "defaults")) {}

base::Result<std::shared_ptr<const Rules>> Rules::load(const std::string& root, RuleOptions options) {
  char resolved[PATH_MAX];
  if (::realpath(root.c_str(), resolved) == nullptr) return base::last_errno(root);
  std::shared_ptr<Rules> rules(new Rules(resolved, std::move(options)));
  if (auto done = rules->load_root(); !done) return std::move(done).error();
  return std::shared_ptr<const Rules>(std::move(rules));
}

base::Result<void> Rules::load_root() {
  const base::UniqueFd dir(::open(root_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir) return base::last_errno(root_);
  auto scope = std::make_shared<Scope>();
  if (const auto dirs = find_git_dirs(root_)) {
    scope->repo = load_repo(root_, "", *dirs, options_.env, nullptr);
    scope->repo_top = true;
    problems_ = scope->repo->problems;
  } else {
    scope->repo = load_enclosing();
    scope->parent = above_root_;
    scope->path = prefix_.substr(0, prefix_.size() - (prefix_.empty() ? 0 : 1));
  }
  read_lists(*scope, dir.get(), {}, problems_);
  root_scope_ = std::move(scope);
  return {};
}

// The root lies inside a work tree: its rules hold here as well, those of the directories in between
// included. When they ignore the root itself they are left out, and only what git tracks counts: who names an
// ignored directory wants it.
std::shared_ptr<const Repo> Rules::load_enclosing() {
  const auto top = find_enclosing_top(root_);
  const auto dirs = top ? find_git_dirs(*top) : std::nullopt;
  if (!dirs) return no_repo();
  auto repo = load_repo(*top, "", *dirs, options_.env, nullptr);
  problems_.insert(problems_.end(), repo->problems.begin(), repo->problems.end());
  const std::string way = root_.substr(*top == "/" ? 1 : top->size() + 1);
  ScopePtr above;
  bool ignored = false;
  for (std::size_t at = 0; at != std::string::npos && !ignored;) {
    auto scope = std::make_shared<Scope>();
    scope->parent = above;
    scope->repo = repo;
    scope->path = way.substr(0, at == 0 ? 0 : at - 1);
    scope->repo_top = at == 0;
    const std::string directory = scope->path.empty() ? *top : *top + "/" + scope->path;
    const base::UniqueFd dir(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (dir) read_lists(*scope, dir.get(), {true, false, false}, problems_);
    above = scope;
    const auto slash = way.find('/', at);
    const auto found = Judge(*this, *scope, way.substr(0, slash), true, {}, Detail::kPlacement).git_match();
    ignored = options_.gitignore && found.pattern != nullptr && !found.pattern->negated();
    at = slash == std::string::npos ? slash : slash + 1;
  }
  prefix_ = way + "/";
  if (!ignored) {
    above_root_ = above;
    return repo;
  }
  auto tracked_alone = std::make_shared<Repo>(*repo);
  tracked_alone->exclude.patterns.clear();
  tracked_alone->global.patterns.clear();
  return tracked_alone;
}

void Rules::read_lists(Scope& scope, int dir, RuleFilesFound found,
                       std::vector<std::string>& problems) const {
  const auto read = [&](const char* name, Case fold, Signature& signature) -> std::optional<PatternList> {
    auto file = read_file_at(dir, name, kMaxRuleFileBytes, Symlink::kRefuse);
    const std::string shown = base_of(scope.path) + name;
    if (!file) {
      signature = look_at(dir, name, Symlink::kRefuse);
      if (file.error().as_errno() != ENOENT) problems.push_back(shown + ": " + file.error().message());
      return std::nullopt;
    }
    signature = file->signature;
    auto list = parse_patterns(file->bytes, shown, base_of(scope.path), fold);
    if (list.refused != 0) problems.push_back(shown + ": lines that are too long or too many were left out");
    return list;
  };
  if (found.gitignore && options_.gitignore)
    scope.git = read(kGitIgnoreName, scope.repo->config.fold, scope.git_signature);
  if (found.nearboxignore)
    scope.nearbox = read(kNearboxIgnoreName, Case::kSensitive, scope.nearbox_signature);
}

ScopePtr Rules::enter(const ScopePtr& parent, std::string_view path, int dir, RuleFilesFound found,
                      std::vector<std::string>& problems) const {
  auto scope = std::make_shared<Scope>();
  scope->parent = parent;
  scope->repo = parent->repo;
  scope->path = prefix_ + std::string(path);
  const auto verdict = Judge(*this, *parent, path, true, {}, Detail::kPlacement).judge();
  if (verdict.below) {
    scope->inherited = verdict.below;
    scope->inherited_matched = verdict.below->matched;
    scope->inherited->matched = scope->inherited_matched;
    // Where all is left out, rule files say nothing, as with git: a package's own may not bring it back.
    if (!verdict.below->synced()) found = {false, false, false};
  }
  if (found.dot_git) {
    const std::string top = root_ + "/" + std::string(path);
    if (const auto dirs = find_git_dirs(top)) {
      scope->repo = load_repo(top, base_of(scope->path), *dirs, options_.env,
                              parent->repo->top.empty() ? nullptr : &parent->repo->around);
      scope->repo_top = true;
      problems.insert(problems.end(), scope->repo->problems.begin(), scope->repo->problems.end());
    }
  }
  read_lists(*scope, dir, found, problems);
  return scope;
}

Decision Rules::decide(const Scope& parent, std::string_view path, bool directory,
                       const CredentialProbe& probe, Detail detail) const {
  return Judge(*this, parent, path, directory, probe, detail).judge().decision;
}

CredentialProbe credential_probe(int root) {
  return [root](std::string_view path) {
    base::UniqueFd dir;
    int at = root;
    std::string rest(path);
    for (auto slash = rest.find('/'); slash != std::string::npos; slash = rest.find('/')) {
      base::UniqueFd next(
          ::openat(at, rest.substr(0, slash).c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (!next) return true;
      dir = std::move(next);
      at = dir.get();
      rest.erase(0, slash + 1);
    }
    const auto file = read_file_at(at, rest, kMaxCredentialScan, Symlink::kRefuse);
    return !file || carries_credential(file->bytes);
  };
}

std::string describe(const Decision& decision, std::string_view path) {
  std::string text;
  switch (decision.kind) {
    case RuleKind::kOwnState:
      return "nearbox keeps its own files there";
    case RuleKind::kDotGit:
      text = "`.git` stays on this machine";
      break;
    case RuleKind::kSecret:
      text = "the secret list has `" + std::string(decision.secret) + "`";
      break;
    case RuleKind::kTracked:
      return "git tracks it, or files in it";
    case RuleKind::kNone:
      return "no rule takes it";
    case RuleKind::kInclude:
    case RuleKind::kExclude:
    case RuleKind::kNearboxIgnore:
    case RuleKind::kGitIgnore:
    case RuleKind::kDefault:
      text = "pattern `" + decision.pattern->text() + "` of " + decision.list->source;
      if (decision.kind != RuleKind::kDefault) text += ", line " + std::to_string(decision.pattern->line());
      break;
  }
  if (decision.matched != path) text += ", which takes " + std::string(decision.matched) + "/";
  return text;
}

}  // namespace nearbox::ignore
