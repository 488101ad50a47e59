// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/client.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "client/api/error_code.h"
#include "tools/daemon/control_errors.h"
#include "tools/daemon/spawn.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

base::Result<void> hello(ControlConnection& connection, Deadline deadline) {
  auto answer = connection.read_json(deadline);
  if (!answer) return std::move(answer).error();
  const auto version = answer->value("control", 0);
  if (version == kControlVersion) return {};
  const auto pid = answer->value("pid", 0);
  return api::make_error(
      api::ErrorCode::kInternal,
      "The daemon of this sandbox is nearbox " + answer->value("version", std::string("?")) +
          ", this command is " NEARBOX_VERSION "; unmount what it serves or end it (kill " +
          std::to_string(pid) + "), then run the command again");
}

bool nobody_listens(const base::Error& error) {
  const int err = error.as_errno();
  return err == ECONNREFUSED || err == ENOENT || err == ECONNRESET;
}

}  // namespace

base::Result<std::unique_ptr<ControlConnection>> connect_daemon(const Layout& layout, Deadline deadline) {
  auto fd = connect_unix(layout.socket());
  if (!fd) return std::move(fd).error();
  auto connection = std::make_unique<ControlConnection>(*std::move(fd));
  if (auto greeted = hello(*connection, deadline); !greeted) return std::move(greeted).error();
  return connection;
}

base::Result<std::unique_ptr<ControlConnection>> connect_or_start(const StartOptions& options,
                                                                  Deadline deadline) {
  auto layout = layout_for(options.target, options.service);
  if (!layout) return std::move(layout).error();
  // A daemon that is just ending still holds the lock for a moment: then look again.
  while (true) {
    auto connection = connect_daemon(*layout, deadline);
    if (connection || !nobody_listens(connection.error())) return connection;
    if (Clock::now() >= deadline) return base::errno_error(ETIMEDOUT, "start the daemon");
    std::vector<std::string> words = {"nearbox",   "daemon",       "--target", options.target.sandbox(),
                                      "--service", options.service};
    if (!options.config_file.empty()) words.insert(words.end(), {"--config", options.config_file});
    auto status = spawn_self(words, layout->log());
    if (!status) return std::move(status).error();
    auto text = read_report(status->get(), deadline);
    if (!text) return std::move(text).error().during("start the daemon (log: " + layout->log() + ")");
    auto report = parse_json(*text);
    if (!report) return std::move(report).error();
    if (report->contains("error")) return error_from((*report)["error"]);
    if (report->value("busy", false)) {
      const auto pause = std::min<Clock::duration>(50ms, deadline - Clock::now());
      if (pause > 0ms) std::this_thread::sleep_for(pause);
    }
  }
}

base::Result<nlohmann::json> request(ControlConnection& connection, const nlohmann::json& message,
                                     Deadline deadline) {
  if (auto sent = connection.write_json(message, deadline); !sent) return std::move(sent).error();
  while (true) {
    auto answer = connection.read_json(deadline);
    if (!answer) return answer;
    if (answer->contains("error")) return error_from((*answer)["error"]);
    if (answer->contains("ok")) return (*answer)["ok"];
    // anything else is progress
  }
}

}  // namespace nearbox::daemon
