// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "client/base/result.h"

struct stat;

namespace nearbox::ignore {

// What tells two states of a file apart without reading it.
struct Signature {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::int64_t size = -1;  // -1: there is no such file
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
  bool operator==(const Signature&) const = default;
};
Signature signature_of(const struct stat& st);

struct FileText {
  std::string bytes;
  Signature signature;
};

enum class Symlink : std::uint8_t { kRefuse, kFollow };  // of the last component

// Reads a regular file. Errors: ENOENT, ELOOP (a symlink), EINVAL (no regular file), EFBIG, and what
// open(2) and read(2) say.
base::Result<FileText> read_file_at(int dir, const std::string& name, std::size_t limit, Symlink symlink);
// The signature of what is there now; size -1 when nothing is.
Signature look_at(int dir, const std::string& name, Symlink symlink);

}  // namespace nearbox::ignore
