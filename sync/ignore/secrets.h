// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string_view>

namespace nearbox::ignore {

inline constexpr std::size_t kMaxCredentialScan = 1024 * 1024;  // a larger file counts as carrying one

// One line of the secret list.
struct SecretRule {
  std::string_view text;         // as docs/ignore.md has it
  bool unless_harmless = false;  // not a secret when git tracks it and it carries no credential
};

// The line of the secret list that the last component of `path` meets; null: none.
const SecretRule* find_secret(std::string_view path, bool directory);

// Whether the text of a file such as `.npmrc` or `.env` holds a password, token or private key. Values that
// only name a variable (`${NPM_TOKEN}`) or that nobody would use (`changeme`) are none.
bool carries_credential(std::string_view text);

// `.git` in any spelling that some file system takes for it: other case, ignorable characters, trailing dots,
// the short name `git~1`. Source: the checks of git 2.39 (path.c is_ntfs_dotgit, utf8.c is_hfs_dotgit) by
// their documented meaning, core.protectNTFS and core.protectHFS in git-config(1).
bool is_dot_git(std::string_view name);

}  // namespace nearbox::ignore
