// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/pattern.h"

#include <chrono>
#include <string>

#include <gtest/gtest.h>

#include "sync/ignore/secrets.h"

namespace nearbox::ignore {
namespace {

bool matches(std::string_view line, std::string_view path, bool directory = false,
             Case fold = Case::kSensitive) {
  const auto list = parse_patterns(std::string(line) + "\n", "file", "", fold);
  return list.last_match({path, directory}) != nullptr;
}

TEST(Pattern, NamesMatchAtAnyDepthAndPathsFromTheFile) {
  EXPECT_TRUE(matches("a.c", "x/y/a.c"));
  EXPECT_FALSE(matches("/a.c", "x/a.c"));
  EXPECT_TRUE(matches("x/a.c", "x/a.c"));
  EXPECT_FALSE(matches("x/a.c", "y/x/a.c"));
  EXPECT_TRUE(matches("**/x/a.c", "y/x/a.c"));
  EXPECT_TRUE(matches("*.c", "x/a.c"));
  EXPECT_FALSE(matches("/*.c", "x/a.c"));
  EXPECT_TRUE(matches("x/**/a", "x/a"));
  EXPECT_TRUE(matches("x/**/a", "x/y/z/a"));
  EXPECT_TRUE(matches("x/**", "x/y/z"));
  EXPECT_FALSE(matches("x/**", "x"));
}

TEST(Pattern, DirectoriesOnlyAndEscapesAndSpaces) {
  EXPECT_FALSE(matches("a/", "a"));
  EXPECT_TRUE(matches("a/", "a", true));
  EXPECT_TRUE(matches("a  ", "a"));
  EXPECT_TRUE(matches("a\\ ", "a "));
  EXPECT_FALSE(matches("a\\ ", "a"));
  EXPECT_TRUE(matches("\\!a", "!a"));
  EXPECT_TRUE(matches("\\#a", "#a"));
  EXPECT_FALSE(matches("#a", "#a"));
  EXPECT_FALSE(matches("a\\", "a\\"));
  EXPECT_TRUE(matches("a\r", "a"));
  EXPECT_TRUE(
      matches("\xef\xbb\xbf"
              "a",
              "a"));
}

TEST(Pattern, Sets) {
  EXPECT_TRUE(matches("[a-c]x", "bx"));
  EXPECT_FALSE(matches("[!a-c]x", "bx"));
  EXPECT_TRUE(matches("[]a]", "]"));
  EXPECT_TRUE(matches("[[:upper:]]", "A"));
  EXPECT_FALSE(matches("[[:none:]a]", "a"));
  EXPECT_FALSE(matches("[a", "[a"));
  EXPECT_FALSE(matches("x[/]y", "x/y"));
  EXPECT_TRUE(matches("ABC", "abc", false, Case::kFold));
}

// A matcher that tries one way after another needs longer than the universe is old for this.
TEST(Pattern, TimeIsBoundByTheSizes) {
  std::string line;
  for (int i = 0; i < 200; ++i) line += "*a";
  line += "*b";
  std::string directories;
  for (int i = 0; i < 200; ++i) directories += "**/a*/";
  const std::string name(4000, 'a');
  std::string path;
  for (int i = 0; i < 2000; ++i) path += "a/";
  path += "b";
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(matches(line, name));
  EXPECT_FALSE(matches(directories + "c", path));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(Pattern, LimitsRefuseAndCount) {
  const auto list =
      parse_patterns(std::string(kMaxPatternBytes + 1, 'a') + "\nb\n", "file", "", Case::kSensitive);
  EXPECT_EQ(list.refused, 1U);
  ASSERT_EQ(list.patterns.size(), 1U);
  EXPECT_EQ(list.patterns[0].line(), 2U);
}

TEST(Pattern, MayMatchBelow) {
  const auto below = [](const char* line, const char* directory) {
    return parse_patterns(std::string(line) + "\n", "file", "", Case::kSensitive).may_match_below(directory);
  };
  EXPECT_TRUE(below("dist/keep.txt", "dist"));
  EXPECT_FALSE(below("dist/keep.txt", "build"));
  EXPECT_FALSE(below("dist/keep.txt", "dist/keep.txt"));
  EXPECT_TRUE(below("keep.txt", "any/where"));
  EXPECT_TRUE(below("a/**/b", "a/x/y"));
  EXPECT_FALSE(below("a/*/b", "a/x/y"));
  EXPECT_TRUE(below("a*/x/b", "ab/x"));
  EXPECT_TRUE(below("a/**", "a/b"));
  EXPECT_TRUE(below("a/**", "a"));
  EXPECT_FALSE(below("!dist/keep.txt", "dist"));
}

TEST(Secrets, NamesOfTheList) {
  for (const char* path : {".env", "a/.env.local", ".env.production", ".envrc", "x.pem", "k.key", "a.p12",
                           "b.pfx", "id_rsa", "id_rsa.pub", "id_ed25519", ".netrc", ".npmrc", ".pypirc",
                           ".docker/config.json", "a/.docker/config.json", "SERVER.PEM"}) {
    EXPECT_NE(find_secret(path, false), nullptr) << path;
  }
  for (const char* path : {".ssh", "x/.aws", ".gnupg"}) {
    EXPECT_NE(find_secret(path, true), nullptr) << path;
    EXPECT_EQ(find_secret(path, false), nullptr) << path;
  }
  for (const char* path : {".env.example", ".env.sample", "a/.env.local.template", "env", "environment.ts",
                           "config.json", "docker/config.json", "pem", "keys.ts", "id.ts", ".gitignore"}) {
    EXPECT_EQ(find_secret(path, false), nullptr) << path;
  }
}

TEST(Secrets, Credentials) {
  for (const char* text : {
           "//registry.npmjs.org/:_authToken=abcdef0123456789\n",
           "_auth = dXNlcjpwYXNz\n",
           "API_KEY=0a1b2c3d4e5f\n",
           "export DB_PASSWORD='hunter2'\n",
           "# old: STRIPE=sk_live_0123456789abcdefXYZ\n",
           "DATABASE_URL=postgres://app:s3cr3t@db/app\n",
           "-----BEGIN RSA PRIVATE KEY-----\n",
           "X=ghp_0123456789abcdefghij0123456789abcdef\n",
       }) {
    EXPECT_TRUE(carries_credential(text)) << text;
  }
  for (const char* text : {
           "registry=https://registry.npmjs.org/\nsave-exact=true\n",
           "//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n",
           "PORT=3000\nNODE_ENV=development\n",
           "API_KEY=\nSECRET=changeme\nTOKEN=<your token>\nPASSWORD=your-password-here\n",
           "DATABASE_URL=postgres://localhost/app\nURL=https://a:${PASSWORD}@b/\n",
           "TOKEN_LIFETIME=3600\nalways-auth=true\n",
           "",
       }) {
    EXPECT_FALSE(carries_credential(text)) << text;
  }
  EXPECT_TRUE(carries_credential(std::string(kMaxCredentialScan + 1, ' ')));
}

TEST(Secrets, GitDirectoryInAnySpelling) {
  for (const char* name : {".git", ".GIT", ".Git ", ".git.", ".g\xe2\x80\x8cit", "git~1", "GIT~1",
                           ".git::$INDEX_ALLOCATION", ".git . ."}) {
    EXPECT_TRUE(is_dot_git(name)) << name;
  }
  for (const char* name : {".gitignore", "git", ".gita", "git~2", ".github", ""})
    EXPECT_FALSE(is_dot_git(name)) << name;
}

}  // namespace
}  // namespace nearbox::ignore
