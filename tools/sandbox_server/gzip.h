// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace nearbox::sandbox_server {

// Compresses a body piece by piece. Threads: one.
class Gzip {
 public:
  Gzip();
  ~Gzip();
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;
  // The compressed form of what was added so far, as far as it is there; empty: more is needed first.
  std::string add(std::string_view data);
  // The rest.
  std::string finish();

 private:
  struct State;
  std::string run(std::string_view data, int flush);
  std::unique_ptr<State> state_;
};

// How a body may be encoded by a request's Accept-Encoding.
//
// gzip is worth its time only to a client that asks for nothing else: ours are on this machine.
// (envd compresses for every client that lists gzip; the SDKs' readers take both.)
// Source: RFC 9110, 12.5.3; e2b-dev/infra 54693ff, packages/envd/internal/api/encoding.go.
enum class BodyEncoding { kIdentity, kGzip, kNone };
// `identity_only`: for ranges and conditions.
BodyEncoding encoding_of(std::string_view accept, bool identity_only);

}  // namespace nearbox::sandbox_server
