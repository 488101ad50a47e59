// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <unistd.h>

#include "client/api/error_code.h"
#include "tools/cli/app.h"
#include "tools/cli/connect.h"
#include "tools/cli/daemons.h"

namespace nearbox::cli {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kStatusDeadline = 5s;

void print_daemon(const nlohmann::json& d) {
  const auto link = d.value("link", nlohmann::json::object());
  const bool up = link.value("up", false);
  std::printf("%s  daemon %d  link %s", printable(d.value("target", "")).c_str(), d.value("pid", 0),
              up ? "up" : "down");
  if (up) std::printf(" (%.1f ms)", link.value("rtt_ms", 0.0));
  if (!up) std::printf(": %s", printable(link.value("last_error", "")).c_str());
  std::printf("\n");
  for (const auto& mount : d.value("mounts", nlohmann::json::array())) {
    std::printf("  %s -> %s%s\n", printable(mount.value("mountpoint", "")).c_str(),
                printable(mount.value("dir", "")).c_str(),
                mount.value("loading", false) ? "  (still loading)" : "");
  }
  const auto watch = d.value("watch", nlohmann::json::object());
  for (const auto& other : watch.value("mounts", nlohmann::json::array())) {
    std::printf("  %s is another file system: %s, %s\n", printable(other.value("path", "")).c_str(),
                printable(other.value("type", "")).c_str(), printable(other.value("how", "")).c_str());
  }
  if (const auto more = watch.value("mounts_left_out", 0); more > 0) {
    std::printf("  and %d other file systems more\n", more);
  }
  const auto tree = d.value("tree", nlohmann::json::object());
  if (tree.value("mode", "whole") != "whole") {
    std::printf("  tree: %s, %llu entries of at most %llu, %llu in use here\n",
                printable(tree.value("mode", "")).c_str(), tree.value("entries", 0ULL),
                tree.value("max_entries", 0ULL), tree.value("pinned", 0ULL));
  }
  for (const auto& program : d.value("programs", nlohmann::json::array())) {
    if (program.value("refused", 0) == 0) continue;
    std::printf("  %d reads of %s were refused: [fetch] in the configuration\n", program.value("refused", 0),
                printable(program.value("name", "")).c_str());
  }
  const auto pending = d.value("pending_operations", 0);
  if (pending > 0) std::printf("  %d operations wait for the sandbox\n", pending);
}

int run_status(App& app) {
  auto status = all_status();
  if (!status) return fail(app, status.error());
  if (app.json) {
    print_json(*status);
    return 0;
  }
  const auto& daemons = (*status)["daemons"];
  if (daemons.empty()) std::printf("nothing is mounted and no command runs\n");
  for (const auto& d : daemons) print_daemon(d);
  return 0;
}

struct FlushArgs {
  std::string path;
  int timeout_s = 300;
};

bool serves(const nlohmann::json& status, const std::string& path) {
  for (const auto& mount : status.value("mounts", nlohmann::json::array())) {
    const auto mountpoint = mount.value("mountpoint", std::string());
    if (path == mountpoint || path.starts_with(mountpoint + "/")) return true;
  }
  return false;
}

int run_flush(App& app, const FlushArgs& args) {
  std::string path = args.path;
  if (!path.empty() && path.front() != '/') {
    char cwd[4096];
    if (::getcwd(cwd, sizeof cwd) == nullptr) return fail(app, base::last_errno("working directory"));
    path = std::string(cwd) + "/" + path;
  }
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  auto layouts = daemon::all_layouts();
  if (!layouts) return fail(app, layouts.error());
  std::size_t flushed = 0;
  for (const auto& layout : *layouts) {
    const auto deadline = Clock::now() + std::chrono::seconds(args.timeout_s);
    auto connection = daemon::connect_daemon(layout, Clock::now() + kStatusDeadline);
    if (!connection) continue;
    if (!path.empty()) {
      auto status = daemon::request(**connection, {{"op", "status"}}, Clock::now() + kStatusDeadline);
      if (!status || !serves(*status, path)) continue;
      connection = daemon::connect_daemon(layout, Clock::now() + kStatusDeadline);
      if (!connection) continue;
    }
    const nlohmann::json message = {{"op", "flush"}, {"timeout_ms", args.timeout_s * 1000}};
    auto answer = daemon::request(**connection, message, deadline + 5s);
    if (!answer) return fail(app, answer.error());
    ++flushed;
  }
  if (flushed == 0 && !path.empty()) {
    return fail(app, api::make_error(
                         api::ErrorCode::kArgInvalid,
                         "PATH is not valid: " + path + " is not in a mount of nearbox; see nearbox status"));
  }
  if (app.json) print_json({{"status", "flushed"}, {"daemons", flushed}});
  return 0;
}

}  // namespace

base::Result<nlohmann::json> all_status() {
  auto layouts = daemon::all_layouts();
  if (!layouts) return std::move(layouts).error();
  auto daemons = nlohmann::json::array();
  for (const auto& layout : *layouts) {
    auto connection = daemon::connect_daemon(layout, Clock::now() + kStatusDeadline);
    if (!connection) continue;  // none runs there
    auto answer = daemon::request(**connection, {{"op", "status"}}, Clock::now() + kStatusDeadline);
    if (answer) daemons.push_back(*std::move(answer));
  }
  return nlohmann::json{{"version", NEARBOX_VERSION}, {"daemons", std::move(daemons)}};
}

void add_status(CLI::App& parser, App& app) {
  auto* status = parser.add_subcommand("status", "What is mounted and how the sandboxes are reached");
  status->callback([&app] { app.run = [&app] { return run_status(app); }; });

  auto args = std::make_shared<FlushArgs>();
  auto* flush = parser.add_subcommand(
      "flush", "Wait until the sandbox has acknowledged all changes and its own are visible here");
  flush->add_option("path", args->path, "Only the mount this path is in");
  flush->add_option("--timeout", args->timeout_s, "Seconds to wait")->check(CLI::Range(1, 86'400));
  flush->callback([&app, args] { app.run = [&app, args] { return run_flush(app, *args); }; });
}

}  // namespace nearbox::cli
