// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/sync_result.h"

#include <array>
#include <cstdint>

namespace nearbox::daemon {
namespace {

// The length of the UTF-8 character that begins at `at`; 0: none does.
std::size_t utf8_length(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(i < text.size() ? text[i] : 0); };
  const auto first = byte(at);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xf0 && first < 0xf5 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
  if (length == 0 || first >= 0xf5) return 0;
  std::uint32_t value = first & (0xffU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
    value = value << 6 | (byte(at + i) & 0x3fU);
  }
  const bool short_form = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
  return short_form || (value >= 0xd800 && value < 0xe000) || value > 0x10ffff ? 0 : length;
}

nlohmann::json skipped_of(const push::Report& report) {
  auto reasons = nlohmann::json::object();
  for (const auto& [reason, count] : report.skipped_by_reason) reasons[reason] = count;
  auto items = nlohmann::json::array();
  for (const auto& item : report.skipped.items)
    items.push_back({{"path", shown(item.path)}, {"reason", item.reason}});
  return {{"count", report.skipped.count}, {"byReason", reasons}, {"items", items}};
}

void add_lists(const push::Report& report, nlohmann::json& out) {
  out["failureCount"] = report.failures.count;
  out["failures"] = nlohmann::json::array();
  for (const auto& one : report.failures.items) {
    out["failures"].push_back(
        {{"path", shown(one.path)}, {"code", one.code}, {"message", shown(one.message)}});
  }
  out["conflictCount"] = report.conflicts.count;
  out["conflicts"] = nlohmann::json::array();
  for (const auto& one : report.conflicts.items) {
    nlohmann::json item = {{"path", shown(one.path)}, {"resolution", one.resolution}};
    if (!one.kept_as.empty()) item["keptAs"] = shown(one.kept_as);
    out["conflicts"].push_back(std::move(item));
  }
  out["remoteChanged"] = {{"count", report.remote_changed.count}, {"items", nlohmann::json::array()}};
  for (const auto& path : report.remote_changed.items) out["remoteChanged"]["items"].push_back(shown(path));
  out["secretsHeldBack"] = nlohmann::json::array();
  for (const auto& path : report.secrets) {
    if (out["secretsHeldBack"].size() < push::kMaxListed) out["secretsHeldBack"].push_back(shown(path));
  }
  if (!report.warnings.empty()) {
    out["warnings"] = nlohmann::json::array();
    for (const auto& text : report.warnings) {
      if (out["warnings"].size() < push::kMaxListed) out["warnings"].push_back(shown(text));
    }
  }
  if (!report.dry_run) return;
  out["changes"] = nlohmann::json::array();
  for (const auto& one : report.changes.items)
    out["changes"].push_back({{"path", shown(one.path)}, {"action", one.reason}});
  out["changeCount"] = report.changes.count;
}

}  // namespace

std::string shown(const std::string& bytes) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string out;
  for (std::size_t at = 0; at < bytes.size();) {
    const auto length = utf8_length(bytes, at);
    if (length > 0) {
      out.append(bytes, at, length);
      at += length;
      continue;
    }
    const auto byte = static_cast<unsigned char>(bytes[at++]);
    out += "\\x";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  }
  return out;
}

nlohmann::json sync_result(const push::Report& report, const SyncNames& names, push::Conflicts policy) {
  const bool conflict = policy == push::Conflicts::kFail && report.conflicts.count > 0;
  const bool partial = report.failures.count > 0 || conflict;
  const auto changed = report.files_sent + report.files_failed + report.files_remote_changed;
  nlohmann::json out = {{"status", report.dry_run ? "dry-run"
                                   : partial      ? "partial"
                                                  : "complete"},
                        {"sandboxId", names.sandbox},
                        {"filesUploaded", report.files_current},
                        {"totalFiles", report.total_files},
                        {"remotePath", shown(report.remote_path)},
                        {"localPath", shown(names.local_path)},
                        {"direction", "push"},
                        {"syncId", names.sync_id},
                        {"watching", false},
                        {"filesSent", report.files_sent},
                        {"filesUnchanged", report.total_files > changed ? report.total_files - changed : 0},
                        {"filesRenamed", report.files_renamed},
                        {"filesCopied", report.files_copied},
                        {"filesReceived", 0},
                        {"filesDeletedRemote", report.files_deleted},
                        {"filesDeletedLocal", 0},
                        {"symlinks", report.symlinks},
                        {"directories", report.directories},
                        {"bytesTotal", report.bytes_total},
                        {"bytesSent", report.bytes_sent},
                        {"bytesReceived", report.bytes_received},
                        {"requests", report.requests},
                        {"durationMs", report.duration_ms},
                        {"skipped", skipped_of(report)}};
  add_lists(report, out);
  if (report.failures.count > 0) {
    out["error"] = std::to_string(report.failures.count) + " of " + std::to_string(report.total_files) +
                   " files were not synchronised";
    out["errorCode"] = "sync.partial";
    out["retryable"] = true;
  } else if (report.conflicts.count > 0 && !report.dry_run && policy != push::Conflicts::kPreferLocal &&
             policy != push::Conflicts::kPreferRemote) {
    const auto& first = report.conflicts.items.front();
    out["error"] = "Both sides changed " + shown(first.path) +
                   (first.kept_as.empty() ? std::string("; the sandbox's copy stays")
                                          : "; the other copy is kept as " + shown(first.kept_as));
    out["errorCode"] = "sync.conflict";
    out["retryable"] = false;
  }
  out["next"] = "execute_remote with this sandboxId runs in " + shown(report.remote_path);
  return out;
}

nlohmann::json sync_progress(const push::Progress& progress) {
  return {{"phase", progress.phase == push::Progress::Phase::kScan ? "scan" : "send"},
          {"filesDone", progress.files_done},
          {"filesTotal", progress.files_total},
          {"bytesDone", progress.bytes_done},
          {"bytesTotal", progress.bytes_total},
          {"bytesSent", progress.bytes_sent}};
}

}  // namespace nearbox::daemon
