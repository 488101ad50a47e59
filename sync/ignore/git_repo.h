// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/api/state_dir.h"
#include "sync/ignore/git_index.h"
#include "sync/ignore/pattern.h"
#include "sync/ignore/rule_file.h"

namespace nearbox::ignore {

inline constexpr std::chrono::seconds kGitDeadline{20};  // of one question to git

// What git's configuration says that matters here.
struct GitConfig {
  std::string
      excludes_file;  // absolute, or relative to the work tree's top; "" never happens: there is a default
  Case fold = Case::kSensitive;
};

// A file outside the rule files of the tree whose change changes rules.
struct OutsideFile {
  enum class What : std::uint8_t { kExclude, kIndex, kConfig };
  What what;
  std::string path;  // absolute
  Signature signature;
};

// One git work tree: what it tracks and the rules that lie in no directory of it.
// Threads: any; never changed once it is made.
struct Repo {
  std::string top;   // absolute path of the work tree
  std::string base;  // its place below where paths begin: "" or "a/b/"
  std::string git_dir;
  std::string common_dir;  // of the repository a linked work tree belongs to; else the same
  GitConfig config;
  GitConfig around;     // what would count in a repository inside it
  PatternList exclude;  // info/exclude
  PatternList global;   // core.excludesFile
  TrackedSet tracked;
  std::vector<OutsideFile> files;
  std::vector<std::string> problems;  // what could not be read, for people
};

// Where the repository of the work tree `top` lies; nullopt: `top` is no work tree's top.
struct GitDirs {
  std::string git_dir;
  std::string common_dir;
};
std::optional<GitDirs> find_git_dirs(const std::string& top);
// The nearest directory above `directory` (itself not looked at) that is a work tree's top, on the same file
// system, as git looks for it.
std::optional<std::string> find_enclosing_top(const std::string& directory);

// Reads it all. `outer` is the configuration of the work tree around it: asked again only when this one's own
// configuration could say something else, since that takes a process of git.
std::shared_ptr<const Repo> load_repo(const std::string& top, const std::string& base, const GitDirs& dirs,
                                      const api::Environment& env, const GitConfig* outer);

// For where no git work tree is: nothing tracked, no rules.
std::shared_ptr<const Repo> no_repo();

}  // namespace nearbox::ignore
