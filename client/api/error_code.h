// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "client/base/result.h"

// The errors that users and other programs meet, by name. One table: name, text, retry, exit code.
// (Capital words in a text are places to fill in.)
namespace nearbox::api {

enum class ErrorCode : int {
  kAuthMissing = 1,
  kAuthFormat,
  kAuthRejected,
  kDisabled,
  kArgMissing,
  kArgInvalid,
  kArgUnknown,
  kSandboxNotFound,
  kSandboxGone,
  kSandboxCreateFailed,       // the cause will not go away by itself
  kSandboxCreateFailedRetry,  // same name and text; the cause may pass
  kSandboxLimit,
  kTemplateUnknown,
  kRateLimited,
  kNetUnreachable,
  kNetTls,
  kTimeoutRequest,
  kTimeoutCommand,
  kTimeoutCode,
  kLocalNotFound,
  kLocalNotDirectory,
  kLocalOutsideRoot,
  kRemoteNotFound,
  kRemoteNotDirectory,
  kRemotePermission,
  kRemoteNoSpace,
  kLocalNoSpace,
  kFileUnreadable,
  kFileChanged,
  kSyncPartial,
  kSyncConflict,
  kSyncBusy,
  kSyncHaltedEmpty,
  kCodeLanguage,
  kCodeUnavailable,
  kMountUnavailable,
  kMountBusy,
  kCancelled,
  kInternal,
  kSandboxBusy,  // the sandbox is pausing, resuming or being copied (HTTP 409)
};

struct ErrorRow {
  ErrorCode code;
  std::string_view name;  // "auth.missing"
  std::string_view text;  // with capital words to fill in
  bool retryable;
  int exit;
  int errno_value;  // what a file system answers with
};

// Every row, in the order of ErrorCode.
std::span<const ErrorRow> error_table();
const ErrorRow& error_row(ErrorCode code);

const std::error_category& nearbox_category() noexcept;
std::error_code make_error_code(ErrorCode code) noexcept;

// `text` is the filled-in sentence.
base::Error make_error(ErrorCode code, std::string text);
// The table's text with its capital words filled in: fill(kArgMissing, {{"NAME", "localPath"}}).
using Filling = std::initializer_list<std::pair<std::string_view, std::string_view>>;
base::Error fill_error(ErrorCode code, Filling filling = {});

// Our code of any error: its own, or the nearest one for an errno (ENOSPC: local.no_space, no
// answer in time: timeout.request, …; what has no near one is `internal`).
ErrorCode error_code_of(const base::Error& error);
bool is(const base::Error& error, ErrorCode code);
// An errno that came from the sandbox's side of the link, with the sandbox's name in its text: what
// error_code_of() would take for a local file's is one of the sandbox's. Errors with a code stay as they are.
base::Error in_sandbox(base::Error error, std::string_view sandbox);

// The text a person reads after "nearbox: ".
std::string error_text(const base::Error& error);
std::string_view code_string(const base::Error& error);
bool is_retryable(const base::Error& error);
int exit_code(const base::Error& error);
// E2B_NOT_AVAILABLE, E2B_TIMEOUT or E2B_EXECUTION_ERROR: the names other tools use.
std::string_view alias_code(const base::Error& error);
// {"error", "errorCode", "retryable", "aliasCode"} on one line.
std::string error_json(const base::Error& error);

// Text from the other end, fit for an error: one line, control characters gone, at most `limit` bytes.
std::string printable(std::string_view text, std::size_t limit = 300);

}  // namespace nearbox::api

template <>
struct std::is_error_code_enum<nearbox::api::ErrorCode> : std::true_type {};
