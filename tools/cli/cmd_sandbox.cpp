// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <cstdio>

#include "client/api/error_code.h"
#include "client/http/control_plane.h"
#include "tools/cli/app.h"
#include "tools/cli/connect.h"
#include "tools/daemon/find_sandbox.h"

namespace nearbox::cli {
namespace {

using namespace std::chrono_literals;

constexpr auto kCallDeadline = 90s;

daemon::Deadline soon() { return std::chrono::steady_clock::now() + kCallDeadline; }

// The control plane the flags and the environment name.
struct Plane {
  api::Config config;
  http::HttpClient client;
  std::unique_ptr<http::HttpControlPlane> plane;
};

base::Result<std::unique_ptr<Plane>> open_plane(const App& app) {
  auto config = config_of(app);
  if (!config) return std::move(config).error();
  const bool local = app.local || config->provider == api::Provider::kLocal;
  const auto provider = local ? daemon::Provider::kLocal : daemon::Provider::kE2b;
  auto service = daemon::service_config(provider, *std::move(config), daemon::StartServer::kYes, soon());
  if (!service) return std::move(service).error();
  auto out = std::make_unique<Plane>();
  out->config = *std::move(service);
  out->plane = std::make_unique<http::HttpControlPlane>(out->client, api::control_plane_url(out->config),
                                                        out->config.api_key);
  return out;
}

const char* state_name(api::SandboxState state) {
  switch (state) {
    case api::SandboxState::kRunning:
      return "running";
    case api::SandboxState::kPaused:
      return "paused";
    case api::SandboxState::kOther:
      break;
  }
  return "other";
}

nlohmann::json describe(const api::SandboxInfo& info) {
  return {{"sandbox_id", info.id.str()},   {"template", info.template_id}, {"state", state_name(info.state)},
          {"started_at", info.started_at}, {"end_at", info.end_at},        {"cpu_count", info.cpu_count},
          {"memory_mb", info.memory_mb},   {"disk_mb", info.disk_mb},      {"metadata", info.metadata}};
}

struct CreateArgs {
  std::string template_name;
  int timeout_s = 0;
  std::string name;
  std::vector<std::string> metadata;
};

int run_create(App& app, const CreateArgs& args) {
  auto plane = open_plane(app);
  if (!plane) return fail(app, plane.error());
  const auto& config = (*plane)->config;
  api::CreateOptions options;
  options.template_id = args.template_name.empty() ? config.template_name : args.template_name;
  options.timeout = args.timeout_s > 0 ? std::chrono::seconds(args.timeout_s) : config.sandbox_timeout;
  options.metadata = config.metadata;
  options.envs = config.envs;
  options.allow_internet_access = config.allow_internet_access;
  if (!args.name.empty()) options.metadata[daemon::kNameKey] = args.name;
  for (const auto& pair : args.metadata) {
    const auto equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      return fail(app, api::make_error(api::ErrorCode::kArgInvalid,
                                       "--metadata is not valid: '" + pair + "' is not K=V"));
    }
    options.metadata[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  auto access = (*plane)->plane->create(options, soon());
  if (!access) return fail(app, access.error());
  if (app.json) {
    print_json({{"sandbox_id", access->id.str()}, {"template", access->template_id}});
  } else {
    std::printf("%s\n", access->id.str().c_str());
  }
  return 0;
}

int run_list(App& app) {
  auto plane = open_plane(app);
  if (!plane) return fail(app, plane.error());
  auto list = (*plane)->plane->list({}, soon());
  if (!list) return fail(app, list.error());
  auto rows = nlohmann::json::array();
  for (const auto& info : list->sandboxes) {
    rows.push_back(describe(info));
    if (app.json) continue;
    std::printf("%-24s %-8s %-20s until %s\n", info.id.str().c_str(), state_name(info.state),
                printable(info.template_id).c_str(), printable(info.end_at).c_str());
  }
  if (app.json) print_json({{"sandboxes", rows}, {"complete", list->complete}});
  if (!app.json && list->sandboxes.empty())
    std::printf("no sandboxes; make one with nearbox sandbox create\n");
  return 0;
}

base::Result<api::SandboxId> find(const App& app, Plane& plane, std::string text) {
  // What `mount` takes is taken here too.
  if (text.starts_with("local:")) text.erase(0, 6);
  const bool by_name = app.local || plane.config.provider == api::Provider::kLocal;
  return daemon::find_sandbox(*plane.plane, text, by_name, soon());
}

int run_info(App& app, const std::string& text) {
  auto plane = open_plane(app);
  if (!plane) return fail(app, plane.error());
  auto id = find(app, **plane, text);
  if (!id) return fail(app, id.error());
  auto info = (*plane)->plane->get(*id, soon());
  if (!info) return fail(app, info.error());
  const auto value = describe(*info);
  if (app.json) {
    print_json(value);
    return 0;
  }
  for (const auto& [key, item] : value.items()) {
    std::printf("%-12s %s\n", key.c_str(),
                printable(item.is_string() ? item.get<std::string>() : item.dump()).c_str());
  }
  return 0;
}

int run_kill(App& app, const std::string& text) {
  auto plane = open_plane(app);
  if (!plane) return fail(app, plane.error());
  auto id = find(app, **plane, text);
  if (!id) return fail(app, id.error());
  auto killed = (*plane)->plane->kill(*id, soon());
  if (!killed) return fail(app, killed.error());
  if (!*killed) return fail(app, api::fill_error(api::ErrorCode::kSandboxNotFound, {{"ID", id->str()}}));
  if (app.json) print_json({{"sandbox_id", id->str()}, {"status", "killed"}});
  return 0;
}

}  // namespace

void add_sandbox(CLI::App& parser, App& app) {
  auto* sandbox = parser.add_subcommand("sandbox", "Make, list and end sandboxes");
  sandbox->require_subcommand(1);
  auto args = std::make_shared<CreateArgs>();
  auto* create = sandbox->add_subcommand("create", "Make a sandbox; prints its id");
  create->add_option("--template", args->template_name, "Template (default: base)");
  create->add_option("--timeout", args->timeout_s, "Seconds it lives; it is paused then, not killed")
      ->check(CLI::Range(1, 86'400 * 30));
  create->add_option("--name", args->name, "A name for local:NAME");
  create->add_option("--metadata", args->metadata, "K=V; may be repeated");
  create->callback([&app, args] { app.run = [&app, args] { return run_create(app, *args); }; });
  auto* list = sandbox->add_subcommand("list", "Your sandboxes");
  list->callback([&app] { app.run = [&app] { return run_list(app); }; });
  auto id = std::make_shared<std::string>();
  auto* info = sandbox->add_subcommand("info", "One sandbox");
  info->add_option("id", *id, "Its id")->required();
  info->callback([&app, id] { app.run = [&app, id] { return run_info(app, *id); }; });
  auto* kill = sandbox->add_subcommand("kill", "End a sandbox; everything in it is gone");
  kill->add_option("id", *id, "Its id")->required();
  kill->callback([&app, id] { app.run = [&app, id] { return run_kill(app, *id); }; });
}

}  // namespace nearbox::cli
