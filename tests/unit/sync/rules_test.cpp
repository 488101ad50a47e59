// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/rules.h"

#include <fstream>
#include <sys/stat.h>

#include <gtest/gtest.h>

#include "sync/ignore/git_child.h"
#include "sync/ignore/git_index.h"
#include "sync/ignore/rule_tree.h"
#include "tests/unit/sync/temp_tree.h"

namespace nearbox::ignore {
namespace {

using test::plain_options;
using test::TempTree;

std::string why(RuleTree& tree, const std::string& path, bool directory = false) {
  const auto answer = tree.answer(path, directory);
  return std::string(name_of(answer.placement)) + " " + std::string(name_of(answer.kind));
}

std::unique_ptr<RuleTree> open(const TempTree& tree, RuleOptions options = plain_options()) {
  auto rules = RuleTree::open(tree.root(), std::move(options));
  EXPECT_TRUE(rules) << rules.error().message();
  return *std::move(rules);
}

TEST(Rules, TheOneOrder) {
  TempTree t;
  t.git("init -q");
  t.write(".gitignore", "*.log\ndist/\n!keep.log\n");
  t.write(".nearboxignore", "fixtures/\n!notes.log\n");
  t.write("dist/tracked.js");
  t.write("dist/other.js");
  t.write("fixtures/tracked.bin");
  t.write("secret.key");
  t.git("add -f dist/tracked.js fixtures/tracked.bin secret.key");
  const auto rules = open(t);
  EXPECT_EQ(why(*rules, "src/a.c"), "synced none");
  EXPECT_EQ(why(*rules, "a.log"), "remote gitignore");
  EXPECT_EQ(why(*rules, "keep.log"), "synced gitignore");
  EXPECT_EQ(why(*rules, "notes.log"), "synced nearboxignore");
  EXPECT_EQ(why(*rules, "dist/other.js"), "remote gitignore");
  EXPECT_EQ(why(*rules, "dist/tracked.js"), "synced tracked");
  EXPECT_EQ(why(*rules, "dist", true), "synced tracked");
  EXPECT_EQ(why(*rules, "fixtures/x"), "remote nearboxignore");
  EXPECT_EQ(why(*rules, "fixtures/tracked.bin"), "synced tracked");
  EXPECT_EQ(why(*rules, "secret.key"), "local secret");  // although git tracks it
  EXPECT_EQ(why(*rules, "a/node_modules", true), "remote default");
  EXPECT_EQ(why(*rules, "a/node_modules/b/c.js"), "remote default");
  EXPECT_EQ(why(*rules, ".git", true), "local dot-git");
  EXPECT_EQ(why(*rules, ".git/config"), "local dot-git");
  EXPECT_EQ(why(*rules, "sub/.git"), "local dot-git");
  EXPECT_EQ(why(*rules, ".nearbox/x"), "local own-state");
}

TEST(Rules, ExplicitIncludeWins) {
  TempTree t;
  t.git("init -q");
  t.write(".gitignore", "dist/\n");
  auto options = plain_options();
  options.include = {"dist/keep.txt", ".env", "node_modules/mine/"};
  options.exclude = {"docs/", "!docs/x"};
  const auto rules = open(t, options);
  EXPECT_EQ(why(*rules, "dist/keep.txt"), "synced include");
  EXPECT_EQ(why(*rules, "dist/a"), "remote gitignore");
  EXPECT_EQ(why(*rules, ".env"), "synced include");
  EXPECT_EQ(why(*rules, "node_modules/mine/deep/x.js"), "synced include");
  EXPECT_EQ(why(*rules, "node_modules/other/x.js"), "remote default");
  EXPECT_EQ(why(*rules, "docs/x"), "remote exclude");
  const auto& all = *rules->rules();
  EXPECT_TRUE(all.decide(*all.root_scope(), "dist", true, {}).enter);
  EXPECT_TRUE(all.decide(*all.root_scope(), "node_modules", true, {}).enter);
  EXPECT_FALSE(all.decide(*all.root_scope(), "docs", true, {}).synced());
}

TEST(Rules, DirectoriesWithNothingToFindAreNotEntered) {
  TempTree t;
  t.write(".gitignore", "dist/\n");
  const auto rules = open(t);
  const auto& all = *rules->rules();
  for (const char* name : {"dist", "node_modules", ".git", ".ssh"}) {
    EXPECT_FALSE(all.decide(*all.root_scope(), name, true, {}).enter) << name;
  }
}

TEST(Rules, IncludeReachesIntoGitOnlyByName) {
  TempTree t;
  auto options = plain_options();
  options.include = {"*"};
  EXPECT_EQ(why(*open(t, options), ".git/config"), "local dot-git");
  EXPECT_EQ(why(*open(t, options), "x/.git"), "local dot-git");
  EXPECT_EQ(why(*open(t, options), ".env"), "synced include");
  options.include = {".git/"};
  EXPECT_EQ(why(*open(t, options), ".git/config"), "synced include");
}

TEST(Rules, ConditionalSecrets) {
  TempTree t;
  t.git("init -q");
  t.write(".npmrc", "save-exact=true\n");
  t.write("app/.npmrc", "//r/:_authToken=0123456789\n");
  t.write(".env", "PORT=3000\n");
  t.write(".env.local", "PORT=3000\n");
  t.write(".env.test", "API_KEY=abcdef123456\n");
  t.write(".env.example", "API_KEY=abcdef123456\n");
  t.git("add -f .npmrc app/.npmrc .env .env.test");
  const auto rules = open(t);
  EXPECT_EQ(why(*rules, ".npmrc"), "synced tracked");
  EXPECT_EQ(why(*rules, "app/.npmrc"), "local secret");  // a credential
  EXPECT_EQ(why(*rules, ".env"), "synced tracked");
  EXPECT_EQ(why(*rules, ".env.local"), "local secret");  // git does not track it
  EXPECT_EQ(why(*rules, ".env.test"), "local secret");
  EXPECT_EQ(why(*rules, ".env.example"), "synced none");
  auto options = plain_options();
  options.secrets = true;
  EXPECT_EQ(why(*open(t, options), ".env.local"), "synced none");
}

TEST(Rules, SecretFilesAreNotReadThroughSymlinks) {
  TempTree t;
  t.git("init -q");
  t.write("plain", "PORT=1\n");
  t.link(".env", "plain");
  t.git("add -f .env");
  EXPECT_EQ(why(*open(t), ".env"), "local secret");  // what cannot be looked into is held back
}

TEST(Rules, WithoutGitIgnore) {
  TempTree t;
  t.git("init -q");
  t.write(".gitignore", "dist/\n");
  auto options = plain_options();
  options.gitignore = false;
  const auto rules = open(t, options);
  EXPECT_EQ(why(*rules, "dist/a"), "synced none");
  EXPECT_EQ(why(*rules, "node_modules", true), "remote default");
}

TEST(Rules, RuleFilesCountWithoutARepository) {
  TempTree t;
  t.write(".gitignore", "dist/\n");
  t.write("a/.gitignore", "x\n");
  const auto rules = open(t);
  EXPECT_EQ(why(*rules, "dist/a"), "remote gitignore");
  EXPECT_EQ(why(*rules, "a/b/x"), "remote gitignore");
  EXPECT_EQ(why(*rules, "b/x"), "synced none");
}

TEST(Rules, AnswersNameFileAndLine) {
  TempTree t;
  t.write("a/.gitignore", "# what we build\n\nout/\n");
  const auto answer = open(t)->answer("a/out/x/y.o", false);
  EXPECT_EQ(answer.file, "a/.gitignore");
  EXPECT_EQ(answer.line, 3U);
  EXPECT_EQ(answer.pattern, "out/");
  EXPECT_EQ(answer.matched, "a/out");
  EXPECT_EQ(answer.text, "pattern `out/` of a/.gitignore, line 3, which takes a/out/");
}

TEST(Rules, InfoExcludeAndExcludesFile) {
  TempTree t;
  t.dir("tree");
  t.git("init -q", "tree");
  t.write("tree/.git/info/exclude", "by-exclude\n");
  t.write("config/git/ignore", "by-default-file\n!by-exclude\n");
  auto options = plain_options();
  options.env = [&](const std::string& name) -> std::optional<std::string> {
    if (name == "XDG_CONFIG_HOME") return t.at("config").string();
    return std::nullopt;
  };
  auto rules = RuleTree::open(t.at("tree").string(), options);
  ASSERT_TRUE(rules);
  EXPECT_EQ(why(**rules, "by-exclude"), "remote gitignore");  // info/exclude is stronger
  EXPECT_EQ(why(**rules, "by-default-file"), "remote gitignore");
  t.write("elsewhere", "by-named-file\n");
  t.git("config core.excludesFile '" + t.at("elsewhere").string() + "'", "tree");
  rules = RuleTree::open(t.at("tree").string(), options);
  EXPECT_EQ(why(**rules, "by-named-file"), "remote gitignore");
  EXPECT_EQ(why(**rules, "by-default-file"), "synced none");
}

TEST(Rules, RootInsideAWorkTree) {
  TempTree t;
  t.git("init -q");
  t.write(".gitignore", "*.log\n/packages/a/gen/\n");
  t.write("packages/.gitignore", "tmp/\n");
  t.write("packages/a/.gitignore", "own\n");
  t.write("packages/a/src/tracked.log");
  t.git("add -f packages/a/src/tracked.log");
  auto rules = RuleTree::open(t.at("packages/a").string(), plain_options());
  ASSERT_TRUE(rules);
  EXPECT_EQ(why(**rules, "x.log"), "remote gitignore");
  EXPECT_EQ(why(**rules, "gen/x"), "remote gitignore");
  EXPECT_EQ(why(**rules, "b/tmp/x"), "remote gitignore");
  EXPECT_EQ(why(**rules, "own"), "remote gitignore");
  EXPECT_EQ(why(**rules, "src/tracked.log"), "synced tracked");
  EXPECT_EQ((*rules)->answer("x.log", false).file, ".gitignore");
}

TEST(Rules, AnIgnoredRootIsTakenForItself) {
  TempTree t;
  t.git("init -q");
  t.write(".gitignore", "build/\n");
  t.write("build/out/a.o");
  t.write("build/out/.env", "PORT=1\n");
  t.write("build/out/.env.local", "PORT=1\n");
  t.git("add -f build/out/.env");
  auto rules = RuleTree::open(t.at("build/out").string(), plain_options());
  ASSERT_TRUE(rules);
  EXPECT_EQ(why(**rules, "a.o"), "synced none");
  EXPECT_EQ(why(**rules, ".env"), "synced tracked");
  EXPECT_EQ(why(**rules, ".env.local"), "local secret");
  EXPECT_TRUE((*rules)->compare()->nothing());
}

TEST(Rules, AnotherWorkTreeInsideHasRulesOfItsOwn) {
  TempTree t;
  t.git("init -q");
  t.write(".gitignore", "*.log\nvendor/\n");
  t.dir("inner");
  t.git("init -q", "inner");
  t.write("inner/.gitignore", "*.tmp\n");
  t.write("inner/t.tmp");
  t.git("add -f t.tmp", "inner");
  t.dir("vendor/dep");
  t.git("init -q", "vendor/dep");
  const auto rules = open(t);
  EXPECT_EQ(why(*rules, "inner/a.log"), "synced none");
  EXPECT_EQ(why(*rules, "inner/a.tmp"), "remote gitignore");
  EXPECT_EQ(why(*rules, "inner/t.tmp"), "synced tracked");
  EXPECT_EQ(why(*rules, "vendor/dep/a.c"), "remote gitignore");  // the outer one ignores it whole
}

TEST(Rules, LinkedWorkTreesAndSubmodules) {
  TempTree t;
  t.dir("main");
  t.git("init -q", "main");
  t.write("main/a");
  t.git("add a", "main");
  t.git("commit -q -m a", "main");
  t.git("worktree add -q ../linked", "main");
  t.write("main/.git/info/exclude", "shared\n");
  t.write("linked/.gitignore", "a\n");
  auto rules = RuleTree::open(t.at("linked").string(), plain_options());
  ASSERT_TRUE(rules);
  EXPECT_EQ(why(**rules, "shared"), "remote gitignore");
  EXPECT_EQ(why(**rules, "a"), "synced tracked");  // from the linked tree's own index
  EXPECT_EQ(why(**rules, ".git"), "local dot-git");
  t.dir("outer");
  t.git("init -q", "outer");
  t.git("submodule --quiet add ../main sub", "outer");
  rules = RuleTree::open(t.at("outer").string(), plain_options());
  ASSERT_TRUE(rules);
  EXPECT_EQ(why(**rules, "sub", true), "synced tracked");
  EXPECT_EQ(why(**rules, "sub/a"), "synced tracked");
  EXPECT_EQ(why(**rules, "sub/.git"), "local dot-git");
}

TEST(Rules, BadRuleFilesAreToldAndCountAsEmpty) {
  TempTree t;
  t.write("elsewhere", "a\n");
  t.link(".gitignore", "elsewhere");  // git does not follow it either
  t.write("dir/a");
  const auto rules = open(t);
  ASSERT_EQ(rules->rules()->problems().size(), 1U);
  EXPECT_NE(rules->rules()->problems()[0].find(".gitignore"), std::string::npos);
  EXPECT_EQ(why(*rules, "a"), "synced none");
  t.remove(".gitignore");
  t.write(".gitignore", std::string(kMaxRuleFileBytes + 1, 'a'));
  EXPECT_EQ(open(t)->rules()->problems().size(), 1U);
}

TEST(Rules, NearboxIgnoreBringsBackWhatGitIgnores) {
  TempTree t;
  t.write(".gitignore", "dist/\ngen/\n*.map\n");
  t.write(".nearboxignore", "!dist/keep.txt\n!gen\n");
  const auto rules = open(t);
  EXPECT_EQ(why(*rules, "dist/keep.txt"), "synced nearboxignore");
  EXPECT_EQ(why(*rules, "dist/a"), "remote gitignore");
  EXPECT_EQ(why(*rules, "gen", true), "synced nearboxignore");
  EXPECT_EQ(why(*rules, "gen/a.c"), "synced none");
  EXPECT_EQ(why(*rules, "gen/a.map"), "remote gitignore");
  const auto& all = *rules->rules();
  EXPECT_TRUE(all.decide(*all.root_scope(), "dist", true, {}).enter);
}

TEST(GitIndex, EveryFormReadsAsGitReadsIt) {
  const struct {
    const char* name;
    const char* init;
    const char* prepare;
    bool ours;  // without asking git
  } kForms[] = {
      {"version 2", "init -q", "update-index --index-version 2", true},
      {"version 3", "init -q", "update-index --index-version 3 --skip-worktree a/b", true},
      {"version 4", "init -q", "update-index --index-version 4", true},
      {"sha256", "init -q --object-format=sha256", "update-index --index-version 2", true},
      {"split", "init -q", "update-index --split-index", false},
      {"untracked cache", "init -q", "update-index --untracked-cache", true},
  };
  for (const auto& form : kForms) {
    SCOPED_TRACE(form.name);
    TempTree t;
    t.git(form.init);
    t.write("a/b");
    t.write("a/" + std::string(200, 'n'));
    t.write("a.c");
    t.write("\xff\xfe");
    t.write("z z/\xc3\xa9");
    t.git("add -A");
    t.git(form.prepare);
    std::ifstream in(t.at(".git/index"), std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    const auto hash = std::string(form.name) == "sha256" ? ObjectHash::kSha256 : ObjectHash::kSha1;
    EXPECT_EQ(parse_git_index(bytes, hash).ok(), form.ours);
    const auto dirs = find_git_dirs(t.root());
    ASSERT_TRUE(dirs);
    const auto repo = load_repo(t.root(), "", *dirs, test::no_environment, nullptr);
    const auto listed = run_git({"-C", t.root(), "ls-files", "-z"},
                                std::chrono::steady_clock::now() + std::chrono::seconds(20));
    ASSERT_TRUE(listed) << listed.error().message();
    EXPECT_EQ(differences(repo->tracked, parse_ls_files(*listed)), std::vector<std::string>());
    EXPECT_EQ(repo->tracked.size(), 5U);
    EXPECT_TRUE(repo->tracked.contains("a/b"));
    EXPECT_TRUE(repo->tracked.any_below("z z"));
    EXPECT_FALSE(repo->tracked.any_below("a.c"));
    EXPECT_EQ(repo->problems, std::vector<std::string>());
    // Cut anywhere, it is refused and nothing is read past the end.
    for (std::size_t cut = 0; cut + 40 < bytes.size(); cut += 3) {
      EXPECT_FALSE(parse_git_index(bytes.substr(0, cut), hash).ok()) << cut;
    }
  }
}

TEST(GitIndex, ASparseOneIsAskedOfGit) {
  TempTree t;
  t.git("init -q");
  t.write("in/a");
  t.write("out/deep/b");
  t.write("c");
  t.git("add -A");
  t.git("commit -q -m x");
  t.git("sparse-checkout set --cone --sparse-index in");
  ASSERT_FALSE(std::filesystem::exists(t.at("out")));
  std::ifstream file(t.at(".git/index"), std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(parse_git_index(bytes, ObjectHash::kSha1).error().as_errno(), ENOTSUP);
  const auto dirs = find_git_dirs(t.root());
  ASSERT_TRUE(dirs);
  const auto repo = load_repo(t.root(), "", *dirs, test::no_environment, nullptr);
  EXPECT_TRUE(repo->tracked.contains("out/deep/b"));
  EXPECT_EQ(repo->tracked.size(), 3U);
}

TEST(GitIndex, ADamagedOneIsToldAndNotGuessedAt) {
  TempTree t;
  t.git("init -q");
  t.write("a");
  t.git("add a");
  t.write(".git/index", "DIRC damaged");
  const auto rules = open(t);
  ASSERT_EQ(rules->rules()->problems().size(), 1U);
  EXPECT_NE(rules->rules()->problems()[0].find("what git tracks"), std::string::npos);
}

TEST(GitChild, HasADeadlineAndABound) {
  TempTree t;
  t.git("init -q");
  const auto now = std::chrono::steady_clock::now();
  EXPECT_EQ(run_git({"--version"}, now - std::chrono::seconds(1)).error().as_errno(), ETIMEDOUT);
  EXPECT_EQ(run_git({"--version"}, now + std::chrono::seconds(20), 3).error().as_errno(), EFBIG);
  const auto failed = run_git({"no-such-command"}, now + std::chrono::seconds(20));
  EXPECT_EQ(failed.error().as_errno(), EIO);
}

TEST(RuleTree, ChangedRuleFilesSayWhatToLookAtAgain) {
  TempTree t;
  t.git("init -q");
  t.write("a/.gitignore", "x\n");
  t.write("a/b/c");
  const auto rules = open(t);
  EXPECT_EQ(why(*rules, "a/b/x"), "remote gitignore");
  t.write("a/.gitignore", "y\n");
  auto again = rules->changed("a/.gitignore");
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->everything);
  EXPECT_EQ(again->paths, std::vector<std::string>{"a"});
  EXPECT_EQ(why(*rules, "a/b/x"), "synced none");
  EXPECT_EQ(why(*rules, "a/b/y"), "remote gitignore");
  EXPECT_TRUE(rules->changed("a/b/c")->nothing());
  t.write(".nearboxignore", "z\n");
  EXPECT_TRUE(rules->changed(".nearboxignore")->everything);
  EXPECT_EQ(why(*rules, "z"), "remote nearboxignore");
}

TEST(RuleTree, CompareNoticesWithoutEvents) {
  TempTree t;
  t.git("init -q");
  t.write(".gitignore", "*.log\n");
  t.write("a/.gitignore", "x\n");
  t.write("a/f.log");
  const auto rules = open(t);
  EXPECT_EQ(why(*rules, "a/x"), "remote gitignore");
  EXPECT_TRUE(rules->compare()->nothing());
  t.write("a/.gitignore", "longer\n");
  EXPECT_EQ(rules->compare()->paths, std::vector<std::string>{"a"});
  EXPECT_EQ(why(*rules, "a/x"), "synced none");
  // git add moves single paths.
  EXPECT_EQ(why(*rules, "a/f.log"), "remote gitignore");
  t.git("add -f a/f.log");
  EXPECT_EQ(rules->compare()->paths, std::vector<std::string>{"a/f.log"});
  EXPECT_EQ(why(*rules, "a/f.log"), "synced tracked");
  EXPECT_TRUE(rules->compare()->nothing());
  t.write(".git/info/exclude", "everywhere\n");
  EXPECT_TRUE(rules->compare()->everything);
  EXPECT_EQ(why(*rules, "a/everywhere"), "remote gitignore");
  t.remove("a/.gitignore");
  EXPECT_EQ(why(*rules, "a/longer"), "remote gitignore");
  EXPECT_EQ(rules->compare()->paths, std::vector<std::string>{"a"});
  EXPECT_EQ(why(*rules, "a/longer"), "synced none");
  t.dir("a/inner");
  EXPECT_EQ(why(*rules, "a/inner/q.log"), "remote gitignore");
  t.git("init -q", "a/inner");
  EXPECT_EQ(rules->compare()->paths, std::vector<std::string>{"a/inner"});
  EXPECT_EQ(why(*rules, "a/inner/q.log"), "synced none");
  t.remove(".git");
  EXPECT_TRUE(rules->compare()->everything);
}

TEST(RuleTree, CompareSeesRulesAboveTheRoot) {
  TempTree t;
  t.git("init -q");
  t.write("p/.gitignore", "x\n");
  t.dir("p/q");
  auto rules = RuleTree::open(t.at("p/q").string(), plain_options());
  ASSERT_TRUE(rules);
  EXPECT_EQ(why(**rules, "x"), "remote gitignore");
  t.write("p/.gitignore", "longer\n");
  EXPECT_TRUE((*rules)->compare()->everything);
  EXPECT_EQ(why(**rules, "x"), "synced none");
  t.write("p/q/y");
  t.write("p/other");
  t.git("add p");
  EXPECT_EQ((*rules)->compare()->paths, std::vector<std::string>{"y"});
}

}  // namespace
}  // namespace nearbox::ignore
