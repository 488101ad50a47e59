// SPDX-License-Identifier: Apache-2.0
#include "tools/cli/connect.h"

#include "client/api/error_code.h"

namespace nearbox::cli {

base::Result<api::Config> config_of(const App& app) {
  auto sources = api::process_sources();
  sources.config_file = app.config_file;
  return api::load_config(sources);
}

base::Result<OpenedDaemon> open_daemon(const App& app, const std::string& target_text,
                                       daemon::Deadline deadline) {
  auto config = config_of(app);
  if (!config) return std::move(config).error();
  const bool local = app.local || config->provider == api::Provider::kLocal;
  auto target = daemon::parse_target(target_text, local);
  if (!target) return std::move(target).error();
  auto service =
      daemon::service_config(target->provider, *std::move(config), daemon::StartServer::kYes, deadline);
  if (!service) return std::move(service).error();
  daemon::StartOptions options;
  options.target = *target;
  options.service = daemon::service_name(target->provider, *service);
  options.config_file = app.config_file;
  auto connection = daemon::connect_or_start(options, deadline);
  if (!connection) return std::move(connection).error();
  return OpenedDaemon{*std::move(target), *std::move(connection)};
}

}  // namespace nearbox::cli
