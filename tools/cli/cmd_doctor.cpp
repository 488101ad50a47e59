// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "client/api/error_code.h"
#include "client/api/state_dir.h"
#include "tools/cli/app.h"
#include "tools/cli/connect.h"
#include "tools/daemon/dialer.h"
#include "tools/daemon/local_server.h"

namespace nearbox::cli {
namespace {

struct Check {
  std::string name;
  bool ok = false;
  bool needed = true;  // without it nothing works; else only what `text` says
  std::string text;
};

Check check_fuse() {
  Check check{"fuse", false, false, ""};
  if (::access("/dev/fuse", F_OK) != 0) {
    check.text =
        "/dev/fuse is missing: load the module (modprobe fuse) or give the container the device; "
        "everything but mounts works without";
    return check;
  }
  const base::UniqueFd fd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!fd) {
    check.text = "/dev/fuse cannot be opened by this user (" + std::string(base::last_errno().message()) +
                 "): chmod 0666 /dev/fuse, as distributions have it; everything but mounts works without";
    return check;
  }
  check.ok = true;
  check.text = "mounts are possible";
  return check;
}

Check check_fusermount() {
  Check check{"fusermount3", false, false, ""};
  if (::geteuid() == 0) return {"fusermount3", true, false, "not needed: root mounts by itself"};
  for (const char* path : {"/usr/bin/fusermount3", "/bin/fusermount3", "/usr/local/bin/fusermount3"}) {
    if (::access(path, X_OK) == 0) return {"fusermount3", true, false, path};
  }
  check.text = "fusermount3 is missing: apt-get install fuse3; everything but mounts works without";
  return check;
}

Check check_kernel() {
  utsname name{};
  (void)::uname(&name);
  int major = 0;
  int minor = 0;
  (void)std::sscanf(name.release, "%d.%d", &major, &minor);
  const bool ok = major > 5 || (major == 5 && minor >= 15);
  return {"kernel", ok, false, std::string(name.release) + (ok ? "" : ": 5.15 or newer is what is tested")};
}

Check check_agent() {
  auto agent = daemon::find_agent_binary();
  if (!agent) return {"agent", false, true, agent.error().message()};
  return {"agent", true, true, agent->path + " (" + agent->build + ")"};
}

Check check_state() {
  auto dir = api::state_dir(api::process_environment());
  if (!dir) return {"state", false, true, dir.error().message()};
  return {"state", true, true, *dir};
}

Check check_account(const App& app) {
  auto config = config_of(app);
  if (!config) return {"configuration", false, true, api::error_text(config.error())};
  if (app.local || config->provider == api::Provider::kLocal) {
    auto server = daemon::find_local_server();
    const bool runs = server && server->has_value();
    return {"embedded server", true, false, runs ? (*server)->api_url : "not running; started when needed"};
  }
  auto key = api::require_api_key(*config);
  return {"E2B account", key.ok(), false,
          key ? api::control_plane_url(*config)
              : api::error_text(key.error()) + "; --local, ssh:HOST and docker:NAME work without"};
}

int run_doctor(App& app) {
  const std::vector<Check> checks = {check_kernel(), check_fuse(),  check_fusermount(),
                                     check_agent(),  check_state(), check_account(app)};
  bool fine = true;
  auto list = nlohmann::json::array();
  for (const auto& check : checks) {
    if (!check.ok && check.needed) fine = false;
    list.push_back({{"name", check.name}, {"ok", check.ok}, {"needed", check.needed}, {"text", check.text}});
    if (!app.json) {
      std::printf("%-16s %s  %s\n", check.name.c_str(),
                  check.ok       ? "ok  "
                  : check.needed ? "FAIL"
                                 : "warn",
                  printable(check.text).c_str());
    }
  }
  if (app.json) print_json({{"ok", fine}, {"checks", list}});
  return fine ? 0 : 1;
}

}  // namespace

void add_doctor(CLI::App& parser, App& app) {
  auto* doctor = parser.add_subcommand("doctor", "Check what this machine offers");
  doctor->callback([&app] { app.run = [&app] { return run_doctor(app); }; });
}

}  // namespace nearbox::cli
