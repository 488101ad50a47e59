// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "tools/sandbox_server/multipart.h"

namespace nearbox::sandbox_server {

// Decompresses a gzip body as it is read.
//
// Threads: one. Errors: EBADMSG for a damaged or truncated stream, the source's own errors.
// Limits:  none on the ratio: what comes out goes to a file of the same sandbox.
class Gunzip {
 public:
  explicit Gunzip(MultipartReader::Source source);
  ~Gunzip();
  Gunzip(const Gunzip&) = delete;
  Gunzip& operator=(const Gunzip&) = delete;
  base::Result<std::size_t> read(char* data, std::size_t size);

 private:
  struct State;
  MultipartReader::Source source_;
  std::unique_ptr<State> state_;
};

}  // namespace nearbox::sandbox_server
