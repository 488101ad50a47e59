// SPDX-License-Identifier: Apache-2.0
#include "client/api/error_code.h"

#include <cerrno>
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "client/api/remote_errno.h"

namespace nearbox::api {
namespace {

struct Expected {
  ErrorCode code;
  const char* name;
  const char* text;  // first words, as the guides of other tools have them
  bool retry;
  int exit;
  const char* alias;
  int errno_value;
};

using enum ErrorCode;
constexpr const char* kNot = "E2B_NOT_AVAILABLE";
constexpr const char* kTime = "E2B_TIMEOUT";
constexpr const char* kExec = "E2B_EXECUTION_ERROR";

const Expected kRows[] = {
    {kAuthMissing, "auth.missing", "E2B API key not configured: set E2B_API_KEY", false, 3, kNot, EACCES},
    {kAuthFormat, "auth.format", "Invalid API key format", false, 3, kExec, EACCES},
    {kAuthRejected, "auth.rejected", "E2B refused the API key", false, 3, kExec, EACCES},
    {kDisabled, "disabled", "E2B is not enabled: E2B_ENABLED is false", false, 2, kNot, EPERM},
    {kArgMissing, "arg.missing", "NAME is required", false, 2, kExec, EINVAL},
    {kArgInvalid, "arg.invalid", "NAME is not valid: WHY", false, 2, kExec, EINVAL},
    {kArgUnknown, "arg.unknown", "unknown argument NAME", false, 2, kExec, EINVAL},
    {kSandboxNotFound, "sandbox.not_found", "Sandbox ID not found", false, 4, kExec, ENXIO},
    {kSandboxGone, "sandbox.gone", "Sandbox ID ended during the operation", false, 4, kExec, ENXIO},
    {kSandboxCreateFailed, "sandbox.create_failed", "E2B sandbox creation failed", false, 1, kExec, EIO},
    {kSandboxCreateFailedRetry, "sandbox.create_failed", "E2B sandbox creation failed", true, 1, kExec,
     EAGAIN},
    {kSandboxLimit, "sandbox.limit", "Maximum sandbox limit reached", true, 10, kExec, EAGAIN},
    {kTemplateUnknown, "template.unknown", "Template NAME not found", false, 2, kExec, EINVAL},
    {kRateLimited, "rate_limited", "Rate limit exceeded", true, 10, kExec, EAGAIN},
    {kNetUnreachable, "net.unreachable", "Cannot reach HOST", true, 8, kNot, EHOSTUNREACH},
    {kNetTls, "net.tls", "Certificate of HOST not accepted", false, 8, kExec, EHOSTUNREACH},
    {kTimeoutRequest, "timeout.request", "Request timeout", true, 7, kTime, ETIMEDOUT},
    {kTimeoutCommand, "timeout.command", "Command timeout after N ms", false, 124, kTime, ETIMEDOUT},
    {kTimeoutCode, "timeout.code", "Code execution timeout after N ms", false, 7, kTime, ETIMEDOUT},
    {kLocalNotFound, "local.not_found", "Local path not found: PATH", false, 2, kExec, ENOENT},
    {kLocalNotDirectory, "local.not_directory", "Local path is not a directory", false, 2, kExec, ENOTDIR},
    {kLocalOutsideRoot, "local.outside_root", "Local path is outside", false, 2, kExec, EPERM},
    {kRemoteNotFound, "remote.not_found", "PATH does not exist in the sandbox", false, 4, kExec, ENOENT},
    {kRemoteNotDirectory, "remote.not_directory", "PATH is not a directory", false, 2, kExec, ENOTDIR},
    {kRemotePermission, "remote.permission", "No permission for PATH", false, 1, kExec, EACCES},
    {kRemoteNoSpace, "remote.no_space", "No space left in the sandbox", false, 9, kExec, ENOSPC},
    {kLocalNoSpace, "local.no_space", "No space left locally", false, 9, kExec, ENOSPC},
    {kFileUnreadable, "file.unreadable", "Cannot read PATH: WHY", false, 5, kExec, EIO},
    {kFileChanged, "file.changed", "PATH kept changing", true, 5, kExec, ESTALE},
    {kSyncPartial, "sync.partial", "N of M files were not", true, 5, kExec, EIO},
    {kSyncConflict, "sync.conflict", "Both sides changed PATH", false, 6, kExec, ESTALE},
    {kSyncBusy, "sync.busy", "A sync of this workspace is already", true, 11, kExec, EBUSY},
    {kSyncHaltedEmpty, "sync.halted_empty", "The SIDE side looks empty", false, 12, kExec, EPERM},
    {kCodeLanguage, "code.language", "Language 'NAME' is not allowed", false, 2, kExec, EINVAL},
    {kCodeUnavailable, "code.unavailable", "This template has no code", false, 1, kExec, ENOTSUP},
    {kMountUnavailable, "mount.unavailable", "FUSE is not available: WHY", false, 1, kExec, ENODEV},
    {kMountBusy, "mount.busy", "PATH is in use or already mounted", false, 1, kExec, EBUSY},
    {kCancelled, "cancelled", "Cancelled", false, 130, kExec, ECANCELED},
    {kInternal, "internal", "Internal error: WHAT", false, 70, kExec, EIO},
    {kSandboxBusy, "sandbox.busy", "Sandbox ID is changing", true, 11, kExec, EBUSY},
};

TEST(ErrorTable, EveryRowIsAsWritten) {
  ASSERT_EQ(std::size(kRows), error_table().size());
  for (std::size_t i = 0; i < std::size(kRows); ++i) {
    const Expected& row = kRows[i];
    SCOPED_TRACE(row.name);
    const base::Error error = fill_error(row.code);
    EXPECT_EQ(error_table()[i].code, row.code);
    EXPECT_EQ(code_string(error), row.name);
    EXPECT_EQ(error.code.message(), row.name);
    EXPECT_TRUE(error_text(error).starts_with(row.text)) << error_text(error);
    EXPECT_EQ(is_retryable(error), row.retry);
    EXPECT_EQ(exit_code(error), row.exit);
    EXPECT_EQ(alias_code(error), row.alias);
    EXPECT_EQ(errno_of(error), row.errno_value);
    EXPECT_TRUE(is(error, row.code));
  }
}

TEST(ErrorTable, FillsWholeWordsOnly) {
  EXPECT_EQ(fill_error(kSandboxGone, {{"ID", "iabc"}, {"N", "3"}}).context,
            "Sandbox iabc ended during the operation; 3 local changes are kept");
  EXPECT_EQ(fill_error(kArgInvalid, {{"N", "wrong"}, {"NAME", "E2B_DOMAIN"}, {"WHY", "NAME"}}).context,
            "E2B_DOMAIN is not valid: NAME");
  EXPECT_EQ(fill_error(kTimeoutRequest, {{"HOST", "api.e2b.app"}, {"N", "60000"}}).context,
            "Request timeout: api.e2b.app did not answer within 60000 ms");
}

TEST(ErrorTable, ErrnosHaveTheNearestCode) {
  const std::pair<int, const char*> rows[] = {
      {ETIMEDOUT, "timeout.request"},  {ECONNREFUSED, "net.unreachable"},
      {ECONNRESET, "net.unreachable"}, {ENOSPC, "local.no_space"},
      {ECANCELED, "cancelled"},        {ENOENT, "local.not_found"},
      {EACCES, "file.unreadable"},     {ENOMEM, "internal"},
      {ENODEV, "mount.unavailable"}};
  for (const auto& [value, name] : rows) EXPECT_EQ(code_string(base::errno_error(value)), name);
  EXPECT_EQ(error_text(base::errno_error(ENOENT, "open a")), "open a: No such file or directory");
}

TEST(ErrorTable, ErrnosOfTheSandboxAreNotTakenForLocalOnes) {
  const std::pair<int, const char*> rows[] = {
      {ENOENT, "remote.not_found"}, {ENOTDIR, "remote.not_directory"}, {EACCES, "remote.permission"},
      {EPERM, "remote.permission"}, {ENOSPC, "remote.no_space"},       {ETIMEDOUT, "timeout.request"},
      {EIO, "file.unreadable"},     {ECONNRESET, "net.unreachable"}};
  for (const auto& [value, name] : rows) {
    const auto error = in_sandbox(base::errno_error(value, "open a"), "docker:box");
    EXPECT_EQ(code_string(error), name);
    EXPECT_TRUE(error_text(error).starts_with("docker:box: open a: ")) << error_text(error);
  }
  const auto named = in_sandbox(fill_error(kCancelled), "docker:box");
  EXPECT_EQ(error_text(named), "Cancelled");
}

TEST(ErrorTable, JsonHoldsAllFourFieldsAndBadBytes) {
  const auto object =
      nlohmann::json::parse(error_json(make_error(kLocalNotFound, "Local path not found: \xff\n")));
  EXPECT_EQ(object["errorCode"], "local.not_found");
  EXPECT_EQ(object["retryable"], false);
  EXPECT_EQ(object["aliasCode"], "E2B_EXECUTION_ERROR");
  EXPECT_EQ(object["error"], "Local path not found: \xef\xbf\xbd\n");
  EXPECT_EQ(error_json(fill_error(kCancelled)).find('\n'), std::string::npos);
}

TEST(ErrorTable, DuringKeepsTheCode) {
  const auto error = fill_error(kCancelled).during("deploy");
  EXPECT_EQ(error_text(error), "deploy: Cancelled");
  EXPECT_EQ(exit_code(error), 130);
}

TEST(RemoteErrno, HttpRows) {
  const std::pair<int, int> rows[] = {{400, EINVAL},   {401, EACCES},  {403, EACCES},    {404, ENOENT},
                                      {405, ENOTSUP},  {406, ENOTSUP}, {409, EBUSY},     {413, EFBIG},
                                      {416, EINVAL},   {429, EAGAIN},  {500, EIO},       {501, ENOTSUP},
                                      {502, ENOTCONN}, {503, EAGAIN},  {504, ETIMEDOUT}, {507, ENOSPC}};
  ASSERT_EQ(std::size(rows), http_errno_table().size());
  for (const auto& [status, value] : rows) EXPECT_EQ(errno_of_http(status), value) << status;
  EXPECT_EQ(errno_of_http(418), EIO);
}

TEST(RemoteErrno, RpcRows) {
  const std::pair<const char*, int> rows[] = {{"canceled", ECANCELED},
                                              {"unknown", EIO},
                                              {"invalid_argument", EINVAL},
                                              {"deadline_exceeded", ETIMEDOUT},
                                              {"not_found", ENOENT},
                                              {"already_exists", EEXIST},
                                              {"permission_denied", EACCES},
                                              {"resource_exhausted", EAGAIN},
                                              {"failed_precondition", ELOOP},
                                              {"aborted", EAGAIN},
                                              {"out_of_range", EINVAL},
                                              {"unimplemented", ENOTSUP},
                                              {"internal", EIO},
                                              {"unavailable", EHOSTUNREACH},
                                              {"data_loss", EIO},
                                              {"unauthenticated", EACCES}};
  ASSERT_EQ(std::size(rows), rpc_errno_table().size());
  for (const auto& [code, value] : rows) EXPECT_EQ(errno_of_rpc(code), value) << code;
  EXPECT_EQ(errno_of_rpc("nonsense"), EIO);
}

TEST(Printable, OneBoundedLine) {
  EXPECT_EQ(printable("a\nb\x1b[31m"), "a b [31m");
  EXPECT_EQ(printable("abcdef", 3), "abc…");
}

}  // namespace
}  // namespace nearbox::api
