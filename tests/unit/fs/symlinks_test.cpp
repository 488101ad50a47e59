// SPDX-License-Identifier: Apache-2.0
#include "fs/core/symlinks.h"

#include <cerrno>
#include <string>

#include <gtest/gtest.h>

namespace nearbox::fs {
namespace {

struct Row {
  const char* target;
  const char* dir;   // of the link, below the mounted root
  const char* root;  // in the sandbox
  int error;
  const char* text;
};

TEST(Symlinks, ContainedTargetsStayAndOthersAreRefused) {
  const Row rows[] = {
      // as stored
      {"file", "", "/w", 0, "file"},
      {"../packages/x", "node_modules", "/w", 0, "../packages/x"},
      {"../../packages/x", "node_modules/@a", "/w", 0, "../../packages/x"},
      {"./a//b/", "d", "/w", 0, "./a//b/"},
      {"..", "d", "/w", 0, ".."},
      {"missing/..name", "", "/w", 0, "missing/..name"},
      // absolute ones inside become relative
      {"/w/lib/a", "", "/w", 0, "lib/a"},
      {"/w/lib/a", "lib", "/w", 0, "a"},
      {"/w/lib/a", "bin/x", "/w", 0, "../../lib/a"},
      {"/w", "bin", "/w", 0, ".."},
      {"/w", "", "/w", 0, "."},
      {"/w/bin/x", "bin/x", "/w", 0, "."},
      {"/etc/passwd", "home", "/", 0, "../etc/passwd"},
      {"/", "a/b", "/", 0, "../.."},
      {"/../../etc", "a", "/", 0, "../etc"},
      {"/w/../w/a", "", "/w", 0, "a"},
      // out and in again by the root's own name
      {"../w/a", "", "/w", 0, "a"},
      {"../../w/a", "d", "/w", 0, "../a"},
      // a ".." behind a name goes by text
      {"sub/../a", "", "/w", 0, "a"},
      {"a/../../b", "d", "/w", 0, "../b"},
      // outside
      {"..", "", "/w", EPERM, ""},
      {"../x", "", "/w", EPERM, ""},
      {"../../x", "d", "/w", EPERM, ""},
      {"/etc/passwd", "", "/w", EPERM, ""},
      {"/wx", "", "/w", EPERM, ""},
      {"/", "", "/w", EPERM, ""},
      {"d/../../x", "", "/w", EPERM, ""},
      {"/w/../etc", "", "/w", EPERM, ""},
      {"s/../../../etc", "d", "/w", EPERM, ""},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(std::string(row.target) + " in " + row.dir + " of " + row.root);
    const auto view = show_link(SymlinkRule::kContain, row.target, row.dir, row.root, "/mnt");
    EXPECT_EQ(view.error, row.error);
    EXPECT_EQ(view.text, row.text);
    const auto text = "/" + view.text + "/";
    const bool climbs = text.find("/../") != std::string::npos;
    EXPECT_EQ(view.rewritten, row.error == 0 && (std::string(row.target) != row.text || climbs));
  }
}

TEST(Symlinks, RawIsAsStored) {
  for (const char* target : {"/etc/passwd", "../../x", "a", "s/../../../etc"}) {
    EXPECT_EQ(show_link(SymlinkRule::kRaw, target, "", "/w", "/mnt").text, target);
  }
}

TEST(Symlinks, RebasePrefixesAbsoluteTargets) {
  EXPECT_EQ(show_link(SymlinkRule::kRebase, "/etc/passwd", "a", "/", "/mnt").text, "/mnt/etc/passwd");
  EXPECT_EQ(show_link(SymlinkRule::kRebase, "/w/a/b", "a", "/w", "/mnt").text, "/mnt/a/b");
  EXPECT_EQ(show_link(SymlinkRule::kRebase, "/../..", "a", "/", "/mnt").text, "/mnt");
  EXPECT_EQ(show_link(SymlinkRule::kRebase, "../x", "a", "/w", "/mnt").text, "../x");
}

TEST(Symlinks, TooLongTextsAreRefused) {
  std::string deep;
  for (int i = 0; i < 1500; ++i) deep += "d/";
  const std::string target = "/w/" + std::string(250, 'x');
  EXPECT_EQ(show_link(SymlinkRule::kContain, target, deep, "/w", "/mnt").error, ENAMETOOLONG);
}

}  // namespace
}  // namespace nearbox::fs
