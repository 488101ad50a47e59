// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

#include "client/base/result.h"

// What a remote answer means as an errno: the one place where that is decided.
namespace nearbox::api {

struct HttpErrno {
  int status;
  int errno_value;
};
struct RpcErrno {
  std::string_view code;  // a Connect code such as "not_found"
  int errno_value;
};

std::span<const HttpErrno> http_errno_table();
std::span<const RpcErrno> rpc_errno_table();

// EIO for what no row names.
int errno_of_http(int status);
int errno_of_rpc(std::string_view code);
// The errno a file system answers with for any error, ours included (row of error_table()).
int errno_of(const base::Error& error);

}  // namespace nearbox::api
