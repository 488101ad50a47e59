// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <unistd.h>

#include <gtest/gtest.h>

#include "sync/ignore/rules.h"

namespace nearbox::test {

// A directory of a test's own, removed at its end.
class TempTree {
 public:
  TempTree() {
    std::string name = std::filesystem::temp_directory_path() / "nearbox-tree-XXXXXX";
    root_ = ::mkdtemp(name.data());
  }
  ~TempTree() {
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  TempTree(const TempTree&) = delete;
  TempTree& operator=(const TempTree&) = delete;

  std::string root() const { return root_.string(); }
  std::filesystem::path at(const std::string& path) const { return path.empty() ? root_ : root_ / path; }
  void dir(const std::string& path) { std::filesystem::create_directories(at(path)); }
  void write(const std::string& path, const std::string& text = "x\n") {
    std::filesystem::create_directories(at(path).parent_path());
    std::ofstream(at(path), std::ios::binary | std::ios::trunc) << text;
  }
  void link(const std::string& path, const std::string& target) {
    std::filesystem::create_directories(at(path).parent_path());
    std::filesystem::create_symlink(target, at(path));
  }
  void remove(const std::string& path) { std::filesystem::remove_all(at(path)); }

  // `git ARGS` in directory `path`, with no configuration but the repository's own.
  void git(const std::string& args, const std::string& path = "") {
    const std::string command = "cd '" + at(path).string() +
                                "' && GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a "
                                "GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b git -c "
                                "protocol.file.allow=always " +
                                args + " >/dev/null";
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }

 private:
  std::filesystem::path root_;
};

// No variables: neither HOME's nor XDG's files are looked at.
inline std::optional<std::string> no_environment(const std::string& name) {
  return name == "HOME" ? std::optional<std::string>("/nonexistent") : std::nullopt;
}
inline ignore::RuleOptions plain_options() {
  ignore::RuleOptions options;
  options.env = no_environment;
  return options;
}

}  // namespace nearbox::test
