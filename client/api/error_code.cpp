// SPDX-License-Identifier: Apache-2.0
#include "client/api/error_code.h"

#include <array>
#include <cerrno>

#include <nlohmann/json.hpp>

namespace nearbox::api {
namespace {

using enum ErrorCode;

constexpr std::string_view kCreateFailed = "E2B sandbox creation failed: WHY";

constexpr std::array kTable{
    ErrorRow{kAuthMissing, "auth.missing", "E2B API key not configured: set E2B_API_KEY or name a key file",
             false, 3, EACCES},
    ErrorRow{kAuthFormat, "auth.format",
             "Invalid API key format: an E2B key starts with e2b_ and goes on in hexadecimal digits", false,
             3, EACCES},
    ErrorRow{kAuthRejected, "auth.rejected", "E2B refused the API key (HTTP 401)", false, 3, EACCES},
    ErrorRow{kDisabled, "disabled", "E2B is not enabled: E2B_ENABLED is false", false, 2, EPERM},
    ErrorRow{kArgMissing, "arg.missing", "NAME is required", false, 2, EINVAL},
    ErrorRow{kArgInvalid, "arg.invalid", "NAME is not valid: WHY", false, 2, EINVAL},
    ErrorRow{kArgUnknown, "arg.unknown", "unknown argument NAME", false, 2, EINVAL},
    ErrorRow{kSandboxNotFound, "sandbox.not_found",
             "Sandbox ID not found: it ended, was killed, or belongs to another account", false, 4, ENXIO},
    ErrorRow{kSandboxGone, "sandbox.gone", "Sandbox ID ended during the operation; N local changes are kept",
             false, 4, ENXIO},
    ErrorRow{kSandboxCreateFailed, "sandbox.create_failed", kCreateFailed, false, 1, EIO},
    ErrorRow{kSandboxCreateFailedRetry, "sandbox.create_failed", kCreateFailed, true, 1, EAGAIN},
    ErrorRow{kSandboxLimit, "sandbox.limit", "Maximum sandbox limit reached: LIMIT", true, 10, EAGAIN},
    ErrorRow{kTemplateUnknown, "template.unknown", "Template NAME not found", false, 2, EINVAL},
    ErrorRow{kRateLimited, "rate_limited", "Rate limit exceeded; retry after N s", true, 10, EAGAIN},
    ErrorRow{kNetUnreachable, "net.unreachable", "Cannot reach HOST: WHY", true, 8, EHOSTUNREACH},
    ErrorRow{kNetTls, "net.tls", "Certificate of HOST not accepted: WHY", false, 8, EHOSTUNREACH},
    ErrorRow{kTimeoutRequest, "timeout.request", "Request timeout: HOST did not answer within N ms", true, 7,
             ETIMEDOUT},
    ErrorRow{kTimeoutCommand, "timeout.command", "Command timeout after N ms; the process was ended", false,
             124, ETIMEDOUT},
    ErrorRow{kTimeoutCode, "timeout.code", "Code execution timeout after N ms; the code was interrupted",
             false, 7, ETIMEDOUT},
    ErrorRow{kLocalNotFound, "local.not_found", "Local path not found: PATH", false, 2, ENOENT},
    ErrorRow{kLocalNotDirectory, "local.not_directory", "Local path is not a directory: PATH", false, 2,
             ENOTDIR},
    ErrorRow{kLocalOutsideRoot, "local.outside_root", "Local path is outside the allowed roots: PATH", false,
             2, EPERM},
    ErrorRow{kRemoteNotFound, "remote.not_found", "PATH does not exist in the sandbox", false, 4, ENOENT},
    ErrorRow{kRemoteNotDirectory, "remote.not_directory", "PATH is not a directory in the sandbox", false, 2,
             ENOTDIR},
    ErrorRow{kRemotePermission, "remote.permission", "No permission for PATH in the sandbox", false, 1,
             EACCES},
    ErrorRow{kRemoteNoSpace, "remote.no_space", "No space left in the sandbox: N bytes needed, M free", false,
             9, ENOSPC},
    ErrorRow{kLocalNoSpace, "local.no_space", "No space left locally: N bytes needed, M free", false, 9,
             ENOSPC},
    ErrorRow{kFileUnreadable, "file.unreadable", "Cannot read PATH: WHY", false, 5, EIO},
    ErrorRow{kFileChanged, "file.changed", "PATH kept changing while it was read", true, 5, ESTALE},
    ErrorRow{kSyncPartial, "sync.partial", "N of M files were not synchronised", true, 5, EIO},
    ErrorRow{kSyncConflict, "sync.conflict", "Both sides changed PATH; the other copy is kept as NAME", false,
             6, ESTALE},
    ErrorRow{kSyncBusy, "sync.busy", "A sync of this workspace is already running (ID)", true, 11, EBUSY},
    ErrorRow{kSyncHaltedEmpty, "sync.halted_empty",
             "The SIDE side looks empty; stopped before deleting N files", false, 12, EPERM},
    ErrorRow{kCodeLanguage, "code.language", "Language 'NAME' is not allowed. Allowed languages: LIST", false,
             2, EINVAL},
    ErrorRow{kCodeUnavailable, "code.unavailable",
             "This template has no code interpreter: port 49999 does not answer", false, 1, ENOTSUP},
    ErrorRow{kMountUnavailable, "mount.unavailable", "FUSE is not available: WHY", false, 1, ENODEV},
    ErrorRow{kMountBusy, "mount.busy", "PATH is in use or already mounted", false, 1, EBUSY},
    ErrorRow{kCancelled, "cancelled", "Cancelled", false, 130, ECANCELED},
    ErrorRow{kInternal, "internal", "Internal error: WHAT (report ID)", false, 70, EIO},
    ErrorRow{kSandboxBusy, "sandbox.busy", "Sandbox ID is changing its state: WHY", true, 11, EBUSY},
};

constexpr bool table_in_order() {
  for (std::size_t i = 0; i < kTable.size(); ++i) {
    if (static_cast<std::size_t>(kTable[i].code) != i + 1) return false;
  }
  return kTable.back().code == kSandboxBusy;
}
static_assert(table_in_order(), "error_row() finds a row by its number");

class Category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "nearbox"; }
  std::string message(int value) const override {
    if (value < 1 || static_cast<std::size_t>(value) > kTable.size()) return "unknown";
    return std::string(kTable[static_cast<std::size_t>(value) - 1].name);
  }
};

bool is_word_char(char c) { return (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; }

ErrorCode code_of_errno(int value) {
  switch (value) {
    case ETIMEDOUT:
      return kTimeoutRequest;
    case ECONNREFUSED:
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
    case ENOTCONN:
    case ESHUTDOWN:
      return kNetUnreachable;
    case ENOSPC:
    case EDQUOT:
      return kLocalNoSpace;
    case ECANCELED:
      return kCancelled;
    case ENOENT:
      return kLocalNotFound;
    case ENOTDIR:
      return kLocalNotDirectory;
    case EACCES:
    case EPERM:
    case EIO:
      return kFileUnreadable;
    case ESTALE:
      return kFileChanged;
    case EINVAL:
    case ENAMETOOLONG:
      return kArgInvalid;
    case ENODEV:
      return kMountUnavailable;
    case EBUSY:
      return kMountBusy;
    default:
      return kInternal;
  }
}

}  // namespace

std::span<const ErrorRow> error_table() { return kTable; }

const ErrorRow& error_row(ErrorCode code) { return kTable[static_cast<std::size_t>(code) - 1]; }

const std::error_category& nearbox_category() noexcept {
  static const Category category;
  return category;
}

std::error_code make_error_code(ErrorCode code) noexcept {
  return {static_cast<int>(code), nearbox_category()};
}

base::Error make_error(ErrorCode code, std::string text) {
  return base::Error{make_error_code(code), std::move(text)};
}

base::Error fill_error(ErrorCode code, Filling filling) {
  const std::string_view text = error_row(code).text;
  std::string out;
  std::size_t at = 0;
  while (at < text.size()) {
    if (!is_word_char(text[at])) {
      out += text[at++];
      continue;
    }
    std::size_t end = at;
    while (end < text.size() && is_word_char(text[end])) ++end;
    std::string_view word = text.substr(at, end - at);
    // A lower-case letter beside it makes it part of an ordinary word ("Sandbox", "E2B" stays).
    const bool whole = (end == text.size() || text[end] < 'a' || text[end] > 'z') &&
                       (at == 0 || text[at - 1] < 'a' || text[at - 1] > 'z');
    for (const auto& [name, value] : filling) {
      if (whole && name == word) {
        word = value;
        break;
      }
    }
    out += word;
    at = end;
  }
  return make_error(code, std::move(out));
}

ErrorCode error_code_of(const base::Error& error) {
  if (error.code.category() == nearbox_category()) {
    const int value = error.code.value();
    const bool known = value >= 1 && static_cast<std::size_t>(value) <= kTable.size();
    return known ? static_cast<ErrorCode>(value) : kInternal;
  }
  const bool is_errno =
      error.code.category() == std::generic_category() || error.code.category() == std::system_category();
  return is_errno ? code_of_errno(error.code.value()) : kInternal;
}

base::Error in_sandbox(base::Error plain, std::string_view sandbox) {
  if (plain.code.category() == nearbox_category()) return plain;
  const base::Error error(std::move(plain).during(sandbox));
  switch (error_code_of(error)) {
    case kLocalNotFound:
      return make_error(kRemoteNotFound, error.message());
    case kLocalNotDirectory:
      return make_error(kRemoteNotDirectory, error.message());
    case kLocalNoSpace:
      return make_error(kRemoteNoSpace, error.message());
    case kFileUnreadable:
      if (error.as_errno() == EIO) return error;
      return make_error(kRemotePermission, error.message());
    default:
      return error;
  }
}

bool is(const base::Error& error, ErrorCode code) { return error.code == make_error_code(code); }

std::string error_text(const base::Error& error) {
  if (error.code.category() != nearbox_category()) return error.message();
  return error.context.empty() ? std::string(error_row(error_code_of(error)).text) : error.context;
}

std::string_view code_string(const base::Error& error) { return error_row(error_code_of(error)).name; }

bool is_retryable(const base::Error& error) { return error_row(error_code_of(error)).retryable; }

int exit_code(const base::Error& error) { return error_row(error_code_of(error)).exit; }

std::string_view alias_code(const base::Error& error) {
  switch (error_code_of(error)) {
    case kAuthMissing:
    case kDisabled:
    case kNetUnreachable:
      return "E2B_NOT_AVAILABLE";
    case kTimeoutRequest:
    case kTimeoutCommand:
    case kTimeoutCode:
      return "E2B_TIMEOUT";
    default:
      return "E2B_EXECUTION_ERROR";
  }
}

std::string error_json(const base::Error& error) {
  const nlohmann::ordered_json object = {{"error", error_text(error)},
                                         {"errorCode", code_string(error)},
                                         {"retryable", is_retryable(error)},
                                         {"aliasCode", alias_code(error)}};
  // Contexts may hold names that are no UTF-8.
  return object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string printable(std::string_view text, std::size_t limit) {
  std::string out;
  for (const char c : text.substr(0, limit)) {
    const auto u = static_cast<unsigned char>(c);
    out += u < 0x20 || u == 0x7f ? ' ' : c;
  }
  if (text.size() > limit) out += "…";
  return out;
}

}  // namespace nearbox::api
