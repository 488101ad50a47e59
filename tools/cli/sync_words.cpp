// SPDX-License-Identifier: Apache-2.0
#include "tools/cli/sync_words.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "tools/cli/app.h"

namespace nearbox::cli {
namespace {

std::uint64_t number(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<std::uint64_t>() : 0;
}

std::string text(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? printable(found->get<std::string>()) : std::string();
}

std::string plural(std::uint64_t count, const std::string& word) {
  return std::to_string(count) + " " + word + (count == 1 ? "" : "s");
}

// "  PATH: WHAT" for each, and how many are not listed.
template <class Line>
std::string listed(const nlohmann::json& list, std::uint64_t count, Line line) {
  std::string out;
  for (const auto& item : list) out += "  " + line(item) + "\n";
  if (count > list.size()) out += "  … and " + std::to_string(count - list.size()) + " more\n";
  return out;
}

}  // namespace

std::string size_words(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  std::array<char, 32> buffer{};
  (void)std::snprintf(buffer.data(), buffer.size(), unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value,
                      kUnits[unit]);
  return buffer.data();
}

std::string sync_words(const nlohmann::json& result) {
  const bool dry = result.value("status", "") == "dry-run";
  std::string out = (dry ? "would send " : "sent ") + plural(number(result, "filesSent"), "file");
  if (const auto renamed = number(result, "filesRenamed"); renamed > 0) {
    out += " (" + std::to_string(renamed) + " by renaming)";
  }
  out += ", " + std::to_string(number(result, "filesUnchanged")) + " unchanged";
  if (const auto deleted = number(result, "filesDeletedRemote"); deleted > 0) {
    out += ", " + std::to_string(deleted) + (dry ? " to delete" : " deleted");
  }
  out += "; " + size_words(number(result, "bytesSent")) + " in " +
         std::to_string(number(result, "durationMs")) + " ms, to " + text(result, "remotePath") + "\n";
  if (const auto found = result.find("changes"); found != result.end()) {
    out += listed(*found, number(result, "changeCount"),
                  [](const auto& item) { return text(item, "action") + " " + text(item, "path"); });
  }
  if (const auto count = number(result, "conflictCount"); count > 0) {
    out += plural(count, "path") + " changed on both sides:\n";
    out += listed(result["conflicts"], count, [](const auto& item) {
      const auto kept = text(item, "keptAs");
      return text(item, "path") +
             (kept.empty() ? ": the sandbox's stays" : ": the sandbox's is kept as " + kept);
    });
  }
  const auto& drift = result["remoteChanged"];
  if (const auto count = number(drift, "count"); count > 0) {
    out += plural(count, "path") +
           " changed in the sandbox alone, left as they are (--conflicts prefer-local replaces):\n";
    out += listed(drift["items"], count,
                  [](const auto& item) { return printable(item.template get<std::string>()); });
  }
  if (const auto& secrets = result["secretsHeldBack"]; !secrets.empty()) {
    out += "held back as secrets (--include-secrets sends them):\n";
    out += listed(secrets, secrets.size(),
                  [](const auto& item) { return printable(item.template get<std::string>()); });
  }
  if (const auto count = number(result, "failureCount"); count > 0) {
    out += plural(count, "path") + " not synchronised:\n";
    out += listed(result["failures"], count, [](const auto& item) { return text(item, "message"); });
  }
  for (const auto& warning : result.value("warnings", nlohmann::json::array())) {
    out += "note: " + printable(warning.get<std::string>()) + "\n";
  }
  return out;
}

std::string sync_bar(const nlohmann::json& progress, std::size_t width) {
  const auto total =
      std::max<std::uint64_t>(number(progress, "bytesTotal") + number(progress, "filesTotal"), 1);
  const auto done = std::min(total, number(progress, "bytesDone") + number(progress, "filesDone"));
  const std::string words = " " + std::to_string(done * 100 / total) + " % · " +
                            std::to_string(number(progress, "filesDone")) + "/" +
                            std::to_string(number(progress, "filesTotal")) + " files · " +
                            size_words(number(progress, "bytesSent")) + " sent";
  constexpr std::size_t kBar = 30;
  if (width < words.size() + kBar + 3) return words.substr(1);
  const auto filled = static_cast<std::size_t>(done * kBar / total);
  return "[" + std::string(filled, '#') + std::string(kBar - filled, '.') + "]" + words;
}

}  // namespace nearbox::cli
