// SPDX-License-Identifier: Apache-2.0
// Random rule files over random trees: what sync/ignore decides is what `git check-ignore` says, with and
// without the index. The pattern that decides and the line it stands in have to be the same, not only the
// outcome.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

#include <gtest/gtest.h>

#include "client/base/unique_fd.h"
#include "sync/ignore/rules.h"

namespace nearbox::ignore {
namespace {

namespace fs = std::filesystem;

constexpr int kRounds = 200;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20261121 : std::strtoull(text, nullptr, 10);
}

void write_file(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read_text(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// What decided: file, line and text of a pattern; all empty: nothing did.
struct Said {
  std::string source;
  std::string line;
  std::string pattern;
  bool operator==(const Said&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Said& said) {
  return out << '"' << said.source << ':' << said.line << ':' << said.pattern << '"';
}

class Round {
 public:
  explicit Round(std::uint64_t number) : rng_(number) {
    // Thousands of small files come and go: in memory where there is such a place.
    std::string name =
        fs::is_directory("/dev/shm") ? "/dev/shm/nearbox-oracle-XXXXXX" : "/tmp/nearbox-oracle-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) name = "/tmp/nearbox-oracle-XXXXXX", ::mkdtemp(name.data());
    top_ = name;
    tree_ = top_ / "tree";
    fs::create_directories(tree_ / ".git/objects");
    fs::create_directories(tree_ / ".git/refs");
    fs::create_directories(tree_ / ".git/info");
    write_file(tree_ / ".git/HEAD", "ref: refs/heads/main\n");
    fold_ = chance(5);
    const bool relative = chance(4);
    write_file(tree_ / ".git/config",
               std::string("[core]\n\trepositoryformatversion = 0\n\tbare = false\n") +
                   "\tignorecase = " + (fold_ ? "true" : "false") +
                   "\n\texcludesFile = " + (relative ? "" : tree_.string() + "/.git/") +
                   (relative ? ".git/global" : "global") + "\n");
    make_tree("", 0);
    write_rules();
  }
  ~Round() { fs::remove_all(top_); }
  Round(const Round&) = delete;
  Round& operator=(const Round&) = delete;

  // The number of paths that were compared.
  std::size_t compare(bool with_index) {
    if (with_index) write_index();
    const auto theirs = ask_git(with_index);
    EXPECT_EQ(theirs.size(), asked_);
    auto compared = compare_below("", theirs, with_index);
    // The same paths below a root somewhere inside, which has to be one that is not ignored.
    if (!directories_.empty()) {
      const auto& root = directories_[pick(directories_.size())];
      if (!ignored_[root]) compared += compare_below(root, theirs, with_index);
    }
    return compared;
  }

  std::size_t matched() const { return matched_; }

 private:
  std::size_t compare_below(const std::string& root, const std::map<std::string, Said>& theirs,
                            bool with_index) {
    const auto ours = ask_rules(root);
    std::size_t compared = 0;
    for (const auto& [path, said] : theirs) {
      if (!root.empty() && !path.starts_with(root + "/")) continue;
      ++compared;
      matched_ += said.line.empty() ? 0 : 1;
      const auto found = ours.find(path);
      if (found == ours.end()) {
        ADD_FAILURE() << path << " is missing";
        continue;
      }
      EXPECT_EQ(found->second, said) << "root '" << root << "' path '" << path << "' fold " << fold_
                                     << " index " << with_index << "\n"
                                     << rules_text_;
    }
    return compared;
  }

  std::size_t pick(std::size_t n) { return static_cast<std::size_t>(rng_() % n); }
  bool chance(std::size_t one_in) { return pick(one_in) == 0; }

  std::string name() {
    static const std::vector<std::string> kNames = {
        "a",   "b",        "c",     "ab",  "abc",   "foo",  "foobar", "bar",  "a.c",      "b.c",  "foo.c",
        "A",   "Foo",      "FOO.c", "a b", " b",    "b ",   "[a]",    "*",    "a*",       "?",    "\\",
        "a\\", "!a",       "#a",    ".x",  ".a",    "a-b",  "]",      "a\tb", "\xc3\xa9", "\xff", "0",
        "12",  "x.tar.gz", "-",     "a]b", "build", "dist", "BUILD",  "_",    "~",
    };
    return kNames[pick(kNames.size())];
  }

  void make_tree(const std::string& at, int depth) {
    const auto count = 2 + pick(depth == 0 ? 8 : 5);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string path = at.empty() ? name() : at + "/" + name();
      if (!seen_.insert(path).second) continue;
      paths_.push_back(path);
      const auto kind = pick(10);
      if (kind < 5 && depth < 4) {
        fs::create_directory(tree_ / path);
        directories_.push_back(path);
        make_tree(path, depth + 1);
      } else if (kind == 5) {
        fs::create_symlink(".", tree_ / path);  // to a directory: is none
      } else if (kind < 9) {
        write_file(tree_ / path, "");
        files_.push_back(path);
      }  // else: a name that is not there
    }
  }

  std::string piece() {
    static const std::vector<std::string> kPieces = {
        "*",           "?",           "**",
        "***",         "[a-c]",       "[!a]",
        "[^b]",        "[a",          "\\a",
        "\\*",         "\\ ",         "\\",
        "[]a]",        "[]-a]",       "[a-]",
        "[--0]",       "[[:alpha:]]", "[[:upper:]]",
        "[[:space:]]", "[[:bad:]]",   "[[:]",
        "[[::]",       "[\\]]",       "[a-\\c]",
        "[A-Z]",       "[[:punct:]]", "[/]",
        "[!/]",        "a",           "b",
        ".c",          "foo",         " ",
        "  ",          "\\\\",        "[[:digit:]x]",
        "!",           "#",           "\t",
        "[\\",         "[a\\-z]",     "[[:lower:]-z]",
        "[!]]",        "A",           "[[:xdigit:][:blank:]]",
    };
    return kPieces[pick(kPieces.size())];
  }

  std::string component() {
    switch (pick(8)) {
      case 0:
        return "**";
      case 1:
        return "*";
      case 2:
        return name() + piece();
      case 3:
        return piece() + name();
      case 4:
        return "*" + name();
      case 5:
        return piece() + piece() + piece();
      default:
        return name();
    }
  }

  // A path of the tree with something of it replaced, or made of pieces.
  std::string pattern() {
    std::string text;
    if (!chance(3) && !paths_.empty()) {
      text = paths_[pick(paths_.size())];
      for (auto changes = pick(3); changes > 0 && !text.empty(); --changes) {
        const auto at = pick(text.size());
        text.replace(at, 1 + pick(3), piece());
      }
      if (chance(2)) text = text.substr(std::min(text.find('/') + 1, text.size()));
    } else {
      text = component();
      for (auto more = pick(3); more > 0; --more) text += "/" + component();
    }
    if (chance(4)) text += "/";
    if (chance(6)) text = "/" + text;
    if (chance(8)) text = "**/" + text;
    if (chance(8)) text += "/**";
    if (chance(4)) text = "!" + text;
    if (chance(20)) text += "  ";
    if (chance(30)) text += "\r";
    if (chance(60)) text += std::string("\0x", 2);
    if (chance(40)) text = "#" + text;
    return text;
  }

  std::string rule_file() {
    std::string text = chance(10) ? "\xef\xbb\xbf" : "";
    for (auto lines = 1 + pick(7); lines > 0; --lines) {
      text += chance(12) ? "" : pattern();
      if (lines > 1 || !chance(4)) text += "\n";
    }
    return text;
  }

  void add_rules(const std::string& path) {
    const auto text = rule_file();
    write_file(tree_ / path, text);
    rules_text_ += "== " + path + "\n" + text + "\n";
  }

  void write_rules() {
    add_rules(".gitignore");
    if (chance(2)) add_rules(".git/info/exclude");
    if (chance(2)) add_rules(".git/global");
    for (const auto& directory : directories_) {
      if (chance(4)) add_rules(directory + "/.gitignore");
    }
  }

  std::string in_tree(const std::string& command) const {
    return "cd '" + tree_.string() + "' && GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null " + command;
  }
  void run(const std::string& command) const {
    const int status = std::system(in_tree(command).c_str());  // the exit code 1 of check-ignore says "none"
    ASSERT_TRUE(status == 0 || status == 256) << command;
  }

  void write_index() {
    std::string input;
    for (const auto& path : files_) {
      if (!chance(4)) continue;
      input += "100644 e69de29bb2d1d6434b8b29ae775ad8c2e48c5391 0\t" + path + '\0';
    }
    write_file(top_ / "index-input", input);
    const std::array<const char*, 3> versions = {"2", "4", "2"};
    run(std::string("git -c core.fsync=none update-index --index-version ") + versions[pick(3)] +
        " -z --index-info < ../index-input");
  }

  std::map<std::string, Said> ask_git(bool with_index) {
    std::string input;
    asked_ = 0;
    for (const auto& path : paths_) {
      // git takes what it is asked about for a pattern when it looks whether something tracked is meant.
      if (with_index && path.find_first_of("*?[\\") != std::string::npos) continue;
      input += path + '\0';
      ++asked_;
    }
    write_file(top_ / "paths", input);
    run(std::string("git check-ignore --verbose --non-matching --stdin -z ") +
        (with_index ? "" : "--no-index ") + "< ../paths > ../answers");
    const auto answers = read_text(top_ / "answers");
    std::map<std::string, Said> out;
    for (std::size_t at = 0; at < answers.size();) {
      std::array<std::string, 4> field;
      for (auto& text : field) {
        text = answers.substr(at, answers.find('\0', at) - at);
        at += text.size() + 1;
      }
      if (field[0].find(".git/global") != std::string::npos) field[0] = ".git/global";
      out[field[3]] = {field[0], field[1], field[2]};
      if (!with_index) ignored_[field[3]] = !field[1].empty() && !field[2].starts_with('!');
    }
    return out;
  }

  // By path from the top; of those below `root` alone.
  std::map<std::string, Said> ask_rules(const std::string& root) {
    RuleOptions options;
    options.secrets = true;
    options.env = [](const std::string&) { return std::nullopt; };
    const auto rules = Rules::load((tree_ / root).string(), options);
    std::map<std::string, Said> out;
    EXPECT_TRUE(rules);
    if (!rules) return out;
    EXPECT_EQ((*rules)->problems(), std::vector<std::string>());
    std::map<std::string, ScopePtr> scopes = {{"", (*rules)->root_scope()}};
    std::vector<std::string> problems;
    for (const auto& whole : paths_) {  // parents come before what is in them
      if (!root.empty() && !whole.starts_with(root + "/")) continue;
      const auto path = root.empty() ? whole : whole.substr(root.size() + 1);
      const auto slash = path.rfind('/');
      const auto& scope = scopes.at(slash == std::string::npos ? "" : path.substr(0, slash));
      const bool directory = fs::is_directory(fs::symlink_status(tree_ / whole));
      const auto decision = (*rules)->decide(*scope, path, directory, {}, Rules::Detail::kExplain);
      out[whole] = said(decision);
      if (decision.matched == path) expect_not_pruned(decision, whole);
      if (!directory) continue;
      const base::UniqueFd dir(::open((tree_ / whole).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      scopes[path] = (*rules)->enter(scope, path, dir.get(), {}, problems);
    }
    return out;
  }

  // What a pattern matches has to be found: no directory on the way to it may be taken for one without
  // matches.
  void expect_not_pruned(const Decision& decision, const std::string& whole) const {
    if (decision.pattern == nullptr) return;
    const auto from = decision.list->base.size();
    for (auto slash = whole.find('/', from); slash != std::string::npos; slash = whole.find('/', slash + 1)) {
      EXPECT_TRUE(decision.pattern->may_match_below(whole.substr(from, slash - from)))
          << decision.pattern->text() << " below " << whole.substr(from, slash - from) << " for " << whole;
    }
  }

  Said said(const Decision& decision) const {
    if (decision.kind != RuleKind::kGitIgnore) return {};  // tracked, or nothing
    std::string source = decision.list->source;
    if (source.starts_with(tree_.string())) source.erase(0, tree_.string().size() + 1);
    if (source.find(".git/global") != std::string::npos) source = ".git/global";
    return {source, std::to_string(decision.pattern->line()), decision.pattern->text()};
  }

  std::mt19937_64 rng_;
  fs::path top_;
  fs::path tree_;
  bool fold_ = false;
  std::set<std::string> seen_;
  std::vector<std::string> paths_;
  std::vector<std::string> files_;
  std::vector<std::string> directories_;
  std::size_t asked_ = 0;
  std::size_t matched_ = 0;
  std::string rules_text_;
  std::map<std::string, bool> ignored_;  // as git says without the index
};

TEST(IgnoreOracle, RandomRulesAreWhatGitSays) {
  SCOPED_TRACE("seed " + std::to_string(seed()));
  std::size_t compared = 0;
  std::size_t matched = 0;
  for (std::uint64_t i = 0; i < kRounds; ++i) {
    SCOPED_TRACE("round " + std::to_string(i));
    Round round(seed() + i);
    compared += round.compare(false);
    compared += round.compare(true);
    matched += round.matched();
    ASSERT_FALSE(::testing::Test::HasFailure());
  }
  RecordProperty("paths", static_cast<int>(compared));
  std::printf("%zu paths compared, %zu of them matched a pattern\n", compared, matched);
  EXPECT_GT(compared, 20'000U);
  EXPECT_GT(matched, compared / 5);  // or the test says little
}

}  // namespace
}  // namespace nearbox::ignore
