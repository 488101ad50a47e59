// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "client/base/result.h"
#include "client/wire/codec.h"
#include "sync/index/index.h"
#include "sync/scan/file_content.h"

namespace nearbox::push {

// A small file as it was at one moment.
struct Loaded {
  index::Entry entry;
  wire::Bytes data;
};

// Reads a file of at most `limit` bytes whole. Reads again when it changes meanwhile.
// Errors:  EAGAIN it changed each time; EFBIG it is larger; ESTALE it is no file now; else of open and read.
base::Result<Loaded> load_file(int root, std::string_view path, const scan::RacyRule& racy,
                               std::uint64_t limit);

}  // namespace nearbox::push
