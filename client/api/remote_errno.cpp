// SPDX-License-Identifier: Apache-2.0
#include "client/api/remote_errno.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "client/api/error_code.h"

namespace nearbox::api {
namespace {

// Source: infra 54693ff, packages/envd/internal/api (status of each refusal) and
// packages/shared/pkg/proxy (502: sandbox or port gone, 403: traffic token, 429: connections).
constexpr std::array kHttp{
    HttpErrno{400, EINVAL},   HttpErrno{401, EACCES},  HttpErrno{403, EACCES},    HttpErrno{404, ENOENT},
    HttpErrno{405, ENOTSUP},  HttpErrno{406, ENOTSUP}, HttpErrno{409, EBUSY},     HttpErrno{413, EFBIG},
    HttpErrno{416, EINVAL},   HttpErrno{429, EAGAIN},  HttpErrno{500, EIO},       HttpErrno{501, ENOTSUP},
    HttpErrno{502, ENOTCONN}, HttpErrno{503, EAGAIN},  HttpErrno{504, ETIMEDOUT}, HttpErrno{507, ENOSPC},
};

// Source: connect-go 1.18.1, code.go; which call answers what: infra 54693ff,
// packages/envd/internal/services.
constexpr std::array kRpc{
    RpcErrno{"canceled", ECANCELED},
    RpcErrno{"unknown", EIO},
    RpcErrno{"invalid_argument", EINVAL},
    RpcErrno{"deadline_exceeded", ETIMEDOUT},
    RpcErrno{"not_found", ENOENT},
    RpcErrno{"already_exists", EEXIST},
    RpcErrno{"permission_denied", EACCES},
    RpcErrno{"resource_exhausted", EAGAIN},
    RpcErrno{"failed_precondition", ELOOP},
    RpcErrno{"aborted", EAGAIN},
    RpcErrno{"out_of_range", EINVAL},
    RpcErrno{"unimplemented", ENOTSUP},
    RpcErrno{"internal", EIO},
    RpcErrno{"unavailable", EHOSTUNREACH},
    RpcErrno{"data_loss", EIO},
    RpcErrno{"unauthenticated", EACCES},
};

}  // namespace

std::span<const HttpErrno> http_errno_table() { return kHttp; }
std::span<const RpcErrno> rpc_errno_table() { return kRpc; }

int errno_of_http(int status) {
  const auto* row =
      std::find_if(kHttp.begin(), kHttp.end(), [&](const auto& r) { return r.status == status; });
  return row == kHttp.end() ? EIO : row->errno_value;
}

int errno_of_rpc(std::string_view code) {
  const auto* row = std::find_if(kRpc.begin(), kRpc.end(), [&](const auto& r) { return r.code == code; });
  return row == kRpc.end() ? EIO : row->errno_value;
}

int errno_of(const base::Error& error) {
  if (error.code.category() != nearbox_category()) return error.as_errno();
  return error_row(error_code_of(error)).errno_value;
}

}  // namespace nearbox::api
