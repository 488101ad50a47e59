// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace nearbox::fs {

enum class SymlinkRule {
  kContain,  // targets stay inside the mounted root, others are refused
  kRaw,      // as stored
  kRebase,   // absolute targets are prefixed with the mountpoint
};

// What readlink answers.
struct LinkView {
  int error = 0;  // EPERM: the target leads outside; ENAMETOOLONG: it became too long
  std::string text;
  bool rewritten = false;  // `text` depends on where the link lies: it changes when a directory moves
};

// How the mount shows a symlink.
//
// link_dir:   the link's directory, relative to the mounted root, "" for the root itself.
// root:       the mounted root's absolute path in the sandbox ("/" or "/a/b").
// mountpoint: its absolute path here (for kRebase).
// kContain only answers targets of the form ../ … ../name/name with no more ".." than the directory
// is deep, or ones rewritten to that form. A later symlink in the path is checked when the kernel reads
// it in turn, so no chain of links leaves the root. A ".." behind a name is removed by the text alone,
// which differs from a native resolution when that name is itself a symlink: the price of a rule that
// the sandbox cannot undermine by changing the name afterwards.
LinkView show_link(SymlinkRule rule, std::string_view target, std::string_view link_dir,
                   std::string_view root, std::string_view mountpoint);

}  // namespace nearbox::fs
