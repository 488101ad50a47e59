// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <sys/stat.h>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/messages.h"
#include "tools/agent/node_stat.h"

// Paths below a root, resolved so that nothing leads outside it: no "..", no symlink in any
// component, no magic link. The code that runs in the sandbox may rename anything at any moment.
//
// Source:  openat2(2), linux v5.6 fs/open.c; RESOLVE_BENEATH may answer EAGAIN while a rename runs.
namespace nearbox::agent {

// The attributes as they travel, with the node's version: at most `as_of`, which is Versions::now() of
// before the stat, or of before the bytes were read that go with them.
wire::Attr make_attr(const Stat& st, std::uint64_t as_of);
wire::Attr make_attr(const Stat& st);  // as of now
// What an operation finds, for OpDone::before: by sizes and times where nobody counts, however young. What
// hides behind them is looked at again all the same: the attributes afterwards are those of a young file.
wire::Attr make_attr_before(const Stat& st);

// Opens `path` (valid_path(); "" is the root itself) below `root`. A trailing symlink is opened
// itself with O_PATH | O_NOFOLLOW, else ELOOP. Never blocks on a FIFO for O_RDONLY.
// Errors:  EINVAL: not a valid path; ELOOP: a symlink on the way; else of open(2).
base::Result<base::UniqueFd> open_beneath(int root, std::string_view path, int flags);

// The directory that holds `path` and the last component; for "" the root itself and ".".
struct Place {
  base::UniqueFd dir;  // O_PATH
  std::string name;
};
base::Result<Place> open_place(int root, std::string_view path);

// lstat of a place, ESTALE when `expect` is set and another node is there.
base::Result<Stat> stat_place(const Place& place, wire::NodeId expect);

// A regular file opened for reading and/or writing: checked before the open (a device or FIFO is
// never touched) and after it.
// Errors:  ESTALE as above; EISDIR, ELOOP, ENXIO by type.
struct OpenFile {
  base::UniqueFd fd;
  Stat st;
};
base::Result<OpenFile> open_regular(const Place& place, wire::NodeId expect, int flags);

// As open_regular for writing; when this process owns the file but its mode forbids it (not root:
// a file that was created read-only and is still being filled), the mode is lifted for the open.
base::Result<OpenFile> open_for_write(const Place& place, wire::NodeId expect, int flags);

}  // namespace nearbox::agent
