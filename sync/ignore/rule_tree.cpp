// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/rule_tree.h"

#include <algorithm>
#include <fcntl.h>
#include <utility>

#include "sync/ignore/beneath.h"
#include "sync/ignore/rule_file.h"

namespace nearbox::ignore {
namespace {

std::string_view parent_of(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}
std::string_view name_in(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}
bool is_below(std::string_view path, std::string_view directory) {
  return directory.empty() ||
         (path.size() > directory.size() && path.starts_with(directory) && path[directory.size()] == '/');
}

}  // namespace

base::Result<std::unique_ptr<RuleTree>> RuleTree::open(const std::string& root, RuleOptions options) {
  auto rules = Rules::load(root, std::move(options));
  if (!rules) return std::move(rules).error();
  return over(*std::move(rules));
}

base::Result<std::unique_ptr<RuleTree>> RuleTree::over(std::shared_ptr<const Rules> rules) {
  base::UniqueFd root(::open(rules->root().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root) return base::last_errno(rules->root());
  return std::unique_ptr<RuleTree>(new RuleTree(std::move(rules), std::move(root)));
}

RuleTree::RuleTree(std::shared_ptr<const Rules> rules, base::UniqueFd root)
    : rules_(std::move(rules)), root_(std::move(root)), probe_(credential_probe(root_.get())) {
  scopes_[""] = rules_->root_scope();
}

ScopePtr RuleTree::scope_of(std::string_view directory) {
  if (const auto found = scopes_.find(directory); found != scopes_.end()) return found->second;
  const auto parent = scope_of(parent_of(directory));  // as deep as the path at most
  if (scopes_.size() >= kMaxCachedScopes) {
    scopes_.clear();
    scopes_[""] = rules_->root_scope();
  }
  RuleFilesFound found;
  const auto dir = open_beneath(root_.get(), directory, O_RDONLY | O_DIRECTORY);
  if (!dir) found = {false, false, false};
  std::vector<std::string> problems;  // a scan tells them
  auto scope = rules_->enter(parent, directory, dir ? dir->get() : -1, found, problems);
  return scopes_.emplace(directory, std::move(scope)).first->second;
}

Decision RuleTree::decide(std::string_view path, bool directory, Rules::Detail detail) {
  const auto scope = scope_of(parent_of(path));
  return rules_->decide(*scope, path, directory, probe_, detail);
}

Placement RuleTree::placement(std::string_view path, bool directory) {
  return path.empty() ? Placement::kSynced : decide(path, directory, Rules::Detail::kPlacement).placement;
}

Answer RuleTree::answer(std::string_view path, bool directory) {
  Answer answer;
  if (path.empty()) {
    answer.text = "it is the root";
    return answer;
  }
  const auto decision = decide(path, directory, Rules::Detail::kExplain);
  answer.placement = decision.placement;
  answer.kind = decision.kind;
  answer.matched = decision.matched;
  answer.text = describe(decision, path);
  answer.pattern = decision.secret;
  if (decision.pattern != nullptr) {
    answer.pattern = decision.pattern->text();
    answer.file = decision.list->source;
    if (decision.kind != RuleKind::kDefault) answer.line = decision.pattern->line();
  }
  return answer;
}

void RuleTree::drop_below(std::string_view directory) {
  std::erase_if(scopes_,
                [&](const auto& one) { return one.first == directory || is_below(one.first, directory); });
}

base::Result<void> RuleTree::reload() {
  auto rules = rules_->reload();
  if (!rules) return std::move(rules).error();
  rules_ = *std::move(rules);
  scopes_.clear();
  scopes_[""] = rules_->root_scope();
  return {};
}

base::Result<LookAgain> RuleTree::changed(std::string_view path) {
  LookAgain again;
  const auto name = name_in(path);
  if (name != ".gitignore" && name != ".nearboxignore" && name != ".git") return again;
  const auto directory = parent_of(path);
  if (directory.empty()) {
    again.everything = true;
    if (auto done = reload(); !done) return std::move(done).error();
    return again;
  }
  again.paths.emplace_back(directory);
  drop_below(directory);
  return again;
}

bool RuleTree::rule_files_differ(const Scope& scope, std::string_view directory) const {
  if (scope.inherited && !scope.inherited->synced()) return false;  // none were read
  const auto dir = open_beneath(root_.get(), directory, O_RDONLY | O_DIRECTORY);
  const auto now = [&](const char* name) {
    return dir ? look_at(dir->get(), name, Symlink::kRefuse) : Signature{};
  };
  if (rules_->options().gitignore && now(".gitignore") != scope.git_signature) return true;
  if (now(".nearboxignore") != scope.nearbox_signature) return true;
  const auto top = rules_->root() + (directory.empty() ? "" : "/" + std::string(directory));
  return scope.repo_top != find_git_dirs(top).has_value();
}

// `directory` is the top of the work tree, or the root below it.
// True: something of it changed, which need not mean that a path is to be looked at again.
base::Result<bool> RuleTree::compare_repo(const Repo& repo, std::string_view directory,
                                          LookAgain& again) const {
  bool rules_changed = false;
  bool index_changed = false;
  for (const auto& file : repo.files) {
    if (look_at(AT_FDCWD, file.path, Symlink::kFollow) == file.signature) continue;
    (file.what == OutsideFile::What::kIndex ? index_changed : rules_changed) = true;
  }
  if (rules_changed) again.paths.emplace_back(directory);
  if (rules_changed || !index_changed) return rules_changed;
  // `git add -f` and `git rm --cached` move single paths: those alone are looked at again.
  const auto dirs = find_git_dirs(repo.top);
  if (!dirs) {
    again.paths.emplace_back(directory);
    return true;
  }
  const auto fresh = load_repo(repo.top, repo.base, *dirs, rules_->options().env, nullptr);
  const auto& root_scope = rules_->root_scope();
  // Paths of the index begin at the work tree's top, ours at the root.
  const std::string above = directory.empty() ? (root_scope->path.empty() ? "" : root_scope->path + "/") : "";
  for (auto& path : differences(repo.tracked, fresh->tracked)) {
    if (!path.starts_with(above)) continue;
    again.paths.push_back((directory.empty() ? "" : std::string(directory) + "/") +
                          path.substr(above.size()));
  }
  return true;
}

// Rule files between the top of the work tree and the root.
bool RuleTree::rules_above_differ() const {
  if (!rules_->options().gitignore) return false;
  for (auto scope = rules_->root_scope()->parent; scope != nullptr; scope = scope->parent) {
    const auto directory = scope->repo->top + (scope->path.empty() ? "" : "/" + scope->path);
    if (look_at(AT_FDCWD, directory + "/.gitignore", Symlink::kRefuse) != scope->git_signature) return true;
  }
  return false;
}

base::Result<LookAgain> RuleTree::compare() {
  LookAgain again;
  bool stale = rules_above_differ();
  again.everything = stale;
  for (const auto& [directory, scope] : scopes_) {
    if (rule_files_differ(*scope, directory)) again.paths.push_back(directory);
    if (!scope->repo_top && !directory.empty()) continue;
    auto differs = compare_repo(*scope->repo, directory, again);
    if (!differs) return std::move(differs).error();
    stale = stale || *differs;
  }
  if (!stale && again.paths.empty()) return again;
  std::sort(again.paths.begin(), again.paths.end());
  again.paths.erase(std::unique(again.paths.begin(), again.paths.end()), again.paths.end());
  again.everything = again.everything || (!again.paths.empty() && again.paths.front().empty());
  if (again.everything) again.paths.clear();
  if (auto done = reload(); !done) return std::move(done).error();
  return again;
}

std::vector<std::string> RuleTree::outside_files() const {
  std::vector<std::string> files;
  for (const auto& [directory, scope] : scopes_) {
    for (const auto& file : scope->repo->files) files.push_back(file.path);
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

}  // namespace nearbox::ignore
