// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string_view>

#include "client/base/secret.h"
#include "tools/sandbox_server/http.h"
#include "tools/sandbox_server/sandbox_table.h"

namespace nearbox::sandbox_server {

inline constexpr std::string_view kClientId = "6532622b";

// E2B's control plane: /sandboxes and its second generation.
//
// Threads: any. Errors: as {"code","message"} with the same HTTP status.
// Source:  e2b-dev/infra 54693ff, spec/openapi.yml; /v2/sandboxes create and connect: typings of the
//          npm package e2b 2.51.0.
class ControlPlane {
 public:
  ControlPlane(SandboxTable& table, base::Secret key, base::Logger& log)
      : table_(table), key_(std::move(key)), log_(log) {}
  void serve(Exchange& exchange);

 private:
  SandboxTable& table_;
  base::Secret key_;
  base::Logger& log_;
};

// Sorting and cutting of a list, apart from the server for tests: `token` is what an earlier page
// returned. EINVAL: a token that is none.
struct PageKey {
  std::int64_t started_ns = 0;
  std::string id;
};
std::string encode_page_token(const PageKey& last, bool ascending);
base::Result<PageKey> decode_page_token(std::string_view token, bool ascending);

// The pairs of a list's metadata filter, which is encoded three times over; `value` after the first decoding.
std::map<std::string, std::string> decode_metadata_filter(std::string_view value);

}  // namespace nearbox::sandbox_server
