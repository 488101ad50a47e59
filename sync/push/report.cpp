// SPDX-License-Identifier: Apache-2.0
#include "sync/push/report.h"

#include <cerrno>
#include <system_error>

namespace nearbox::push {
namespace {

std::string why(int error) { return std::generic_category().message(error); }

std::string_view reason_of(scan::ProblemKind kind) {
  switch (kind) {
    case scan::ProblemKind::kSpecial:
      return "special";
    case scan::ProblemKind::kOtherMount:
      return "outside-root";
    case scan::ProblemKind::kPathTooLong:
      return "unreadable-name";
    case scan::ProblemKind::kTooLarge:
      return "too-large";
    case scan::ProblemKind::kSymlinkSkipped:
      return "symlink";
    default:
      return {};
  }
}

}  // namespace

void Report::skip(const std::string& path, std::string_view reason) {
  ++skipped_by_reason[std::string(reason)];
  skipped.add({path, std::string(reason)});
}

void Report::fail(const std::string& path, std::string_view code, std::string message, bool file) {
  if (file) ++files_failed;
  failures.add({path, std::string(code), std::move(message)});
}

void fail_local(Report& report, const std::string& path, int error, bool file) {
  if (error == EAGAIN || error == ESTALE) {
    report.fail(path, "file.changed", path + " kept changing while it was read", file);
  } else {
    report.fail(path, "file.unreadable", "Cannot read " + path + ": " + why(error), file);
  }
}

void fail_remote(Report& report, const std::string& path, int error, bool file) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return report.fail(path, "remote.no_space", "No space left in the sandbox for " + path, file);
    case EACCES:
    case EPERM:
    case EROFS:
      return report.fail(path, "remote.permission", "No permission for " + path + " in the sandbox", file);
    case ELOOP:
      return report.fail(path, "remote.not_directory",
                         path + " lies behind a symlink in the sandbox; nothing is written through it", file);
    case ENOTDIR:
      return report.fail(path, "remote.not_directory",
                         path + " lies below something that is no directory in the sandbox", file);
    case EBADMSG:
      return report.fail(path, "internal", path + " arrived damaged, and was not taken", file);
    default:
      return report.fail(path, "internal", path + ": the sandbox says: " + why(error), file);
  }
}

void take_scan(const scan::ScanResult& scanned, const std::function<bool(const std::string&)>& is_file,
               Report& report) {
  report.total_files = scanned.counts.files;
  report.symlinks = scanned.counts.symlinks;
  report.directories = scanned.counts.directories;
  report.bytes_total = scanned.counts.bytes;
  for (const auto& left : scanned.left_out) {
    const auto reason = ignore::skip_reason(left.kind);
    report.skip(left.directory ? left.path + "/" : left.path, reason);
    if (reason == "secret") report.secrets.push_back(left.directory ? left.path + "/" : left.path);
  }
  for (const auto& problem : scanned.problems) {
    if (const auto reason = reason_of(problem.kind); !reason.empty()) {
      report.skip(problem.path, reason);
    } else if (problem.kind == scan::ProblemKind::kRules) {
      report.warnings.push_back(problem.path);
    } else if (problem.kind == scan::ProblemKind::kUnreadable) {
      fail_local(report, problem.path, problem.error, is_file(problem.path));
    } else if (!scan::is_note(problem.kind)) {
      fail_local(report, problem.path, EAGAIN, is_file(problem.path));
    }
  }
}

}  // namespace nearbox::push
