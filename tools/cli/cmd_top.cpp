// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <iterator>
#include <map>
#include <string>
#include <unistd.h>
#include <utility>

#include "tools/cli/app.h"
#include "tools/cli/daemons.h"

namespace nearbox::cli {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr std::size_t kShownPrograms = 10;

struct TopArgs {
  int interval_s = 1;
  int count = 0;  // 0: until it is ended
};

std::string bytes_text(double bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 || bytes >= 99.95 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
  return text;
}

std::string percent(const json& ratio) {
  if (!ratio.is_number()) return "-";
  return std::to_string(static_cast<int>(ratio.get<double>() * 100 + 0.5)) + " %";
}

// One counter a second, since the picture before.
double rate(const json& now, const json& before, const json::json_pointer& counter, double seconds) {
  if (before.is_null() || seconds <= 0) return 0;
  const double grown = now.value(counter, 0.0) - before.value(counter, 0.0);
  return std::max(0.0, grown) / seconds;
}

void print_daemon(const json& d, const json& before, double seconds) {
  const auto each = [&](const char* counter) {
    return rate(d, before, json::json_pointer(counter), seconds);
  };
  const auto link = d.value("link", json::object());
  if (link.value("up", false)) {
    std::printf("%s  up, %.1f ms  in %s/s  out %s/s  %.0f round trips/s  %d operations wait\n",
                printable(d.value("target", "")).c_str(), link.value("rtt_ms", 0.0),
                bytes_text(each("/link/bytes_in")).c_str(), bytes_text(each("/link/bytes_out")).c_str(),
                each("/link/round_trips"), d.value("pending_operations", 0));
  } else {
    std::printf("%s  down: %s  %d operations wait\n", printable(d.value("target", "")).c_str(),
                printable(link.value("last_error", "")).c_str(), d.value("pending_operations", 0));
  }
  const auto cache = d.value("cache", json::object());
  const auto prefetch = d.value("prefetch", json::object());
  std::printf("  %d names known, %s  cache %s, hits %s  fetched ahead %s, of it read %s\n",
              d.value(json::json_pointer("/tree/nodes"), 0),
              bytes_text(d.value(json::json_pointer("/tree/memory_bytes"), 0.0)).c_str(),
              bytes_text(cache.value("bytes", 0.0)).c_str(), percent(cache.value("hit_rate", json())).c_str(),
              bytes_text(prefetch.value("asked_bytes", 0.0)).c_str(),
              percent(prefetch.value("efficiency", json())).c_str());
  const auto mounts = d.value("mounts", json::array());
  for (std::size_t i = 0; i < mounts.size(); ++i) {
    const auto& mount = mounts[i];
    json was;
    for (const auto& one : before.is_object() ? before.value("mounts", json::array()) : json::array()) {
      if (one.value("mountpoint", "") == mount.value("mountpoint", "")) was = one;
    }
    const auto of = [&](const char* counter) {
      return rate(mount, was, json::json_pointer(counter), seconds);
    };
    std::printf("  %s  %.0f requests/s  read %s/s  written %s/s  %d wait  %.0f invalidations/s\n",
                printable(mount.value("mountpoint", "")).c_str(), of("/requests"),
                bytes_text(of("/bytes_read")).c_str(), bytes_text(of("/bytes_written")).c_str(),
                mount.value("parked_requests", 0), of("/invalidations"));
  }
  const auto programs = d.value("programs", json::array());
  for (std::size_t i = 0; i < std::min(programs.size(), kShownPrograms); ++i) {
    const auto refused = programs[i].value("refused", 0);
    std::printf("    %-24s fetched %s%s\n", printable(programs[i].value("name", "")).c_str(),
                bytes_text(programs[i].value("fetched_bytes", 0.0)).c_str(),
                refused == 0 ? "" : ("  refused " + std::to_string(refused) + " reads").c_str());
  }
}

// False when a signal asked to end.
bool sleep_until(Clock::time_point until, const sigset_t& signals) {
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(until - Clock::now());
    if (left.count() <= 0) return true;
    const timespec wait{left.count() / 1'000'000'000, left.count() % 1'000'000'000};
    if (::sigtimedwait(&signals, nullptr, &wait) > 0) return false;
    if (errno != EAGAIN && errno != EINTR) return false;
  }
}

int run_top(App& app, const TopArgs& args) {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals, signal);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  const bool screen = !app.json && ::isatty(1) == 1;
  std::map<std::string, json> before;
  auto seen = Clock::now();
  for (int round = 0; args.count == 0 || round < args.count; ++round) {
    const auto next = Clock::now() + std::chrono::seconds(args.interval_s);
    auto status = all_status();
    if (!status) return fail(app, status.error());
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - std::exchange(seen, now)).count();
    if (app.json) {
      print_json(*status);
    } else {
      if (screen) std::printf("\033[H\033[2J");
      const auto& daemons = (*status)["daemons"];
      if (daemons.empty()) std::printf("nothing is mounted and no command runs\n");
      for (const auto& d : daemons) print_daemon(d, before[d.value("target", "")], seconds);
      if (std::fflush(stdout) != 0) return 1;
    }
    before.clear();
    for (const auto& d : (*status)["daemons"]) before[d.value("target", "")] = d;
    if (round + 1 == args.count) break;
    if (!sleep_until(next, signals)) break;
  }
  return 0;
}

}  // namespace

void add_top(CLI::App& parser, App& app) {
  auto args = std::make_shared<TopArgs>();
  auto* top = parser.add_subcommand("top", "What goes over the links now, and for which local programs");
  top->add_option("--interval", args->interval_s, "Seconds between two pictures")->check(CLI::Range(1, 3600));
  top->add_option("--count", args->count, "How many pictures; 0: until ctrl-C")
      ->check(CLI::Range(0, 1'000'000'000));
  top->callback([&app, args] { app.run = [&app, args] { return run_top(app, *args); }; });
}

}  // namespace nearbox::cli
