// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/sandbox_dialer.h"

#include <atomic>
#include <optional>
#include <stop_token>

#include "client/api/error_code.h"
#include "client/base/mutex.h"
#include "client/http/control_plane.h"
#include "client/http/deploy.h"
#include "client/http/envd.h"
#include "client/http/ws_dial.h"
#include "tools/daemon/find_sandbox.h"
#include "tools/daemon/local_server.h"
#include "tools/daemon/parse_token.h"
#include "tools/daemon/service.h"

namespace nearbox::daemon {
namespace {

class SandboxDialer : public Dialer {
 public:
  SandboxDialer(Target target, api::Config config, AgentBinary agent, base::Logger& log)
      : target_(std::move(target)), config_(std::move(config)), agent_(std::move(agent)), log_(log) {}

  base::Result<channel::Dialled> dial(wire::Role role, channel::Deadline deadline) override {
    (void)role;
    if (forget_.exchange(false)) address_.reset();
    if (!address_) {
      if (auto found = locate(deadline); !found) return std::move(found).error();
    }
    const auto route = http::route_to(config_, *access_, address_->port);
    auto carrier = http::dial_agent(route, deadline, stop_.get_token());
    if (!carrier) {
      // The agent may have ended, moved or been replaced: the next attempt asks for all of it again.
      address_.reset();
      return std::move(carrier).error();
    }
    auto token = parse_token(address_->token.reveal());
    if (!token) return std::move(token).error();
    return channel::Dialled{*std::move(carrier), *token};
  }

  bool is_final(const base::Error& error) const override {
    return api::is(error, api::ErrorCode::kSandboxNotFound) || api::is(error, api::ErrorCode::kAuthRejected);
  }
  std::string describe() const override { return target_.sandbox(); }
  void wanted() override { wanted_ = true; }
  void abort() override { stop_.request_stop(); }
  void refused() override { forget_ = true; }

 private:
  // Control plane, envd, agent: what is needed once and after each failure.
  base::Result<void> locate(channel::Deadline deadline) {
    const auto stop = stop_.get_token();
    if (target_.provider == Provider::kLocal) {
      // The embedded server may have been started anew on another port.
      auto config = service_config(Provider::kLocal, config_, StartServer::kNo, deadline);
      if (!config) return std::move(config).error();
      config_ = *std::move(config);
    }
    http::HttpControlPlane plane(client_, api::control_plane_url(config_), config_.api_key);
    auto id = find_sandbox(plane, target_.name, target_.provider == Provider::kLocal, deadline);
    if (!id) return std::move(id).error();
    // Only a user's command wakes a sandbox; an attempt of our own asks first.
    if (!wanted_.exchange(false)) {
      auto info = plane.get(*id, deadline, stop);
      if (!info) return std::move(info).error();
      if (info->state == api::SandboxState::kPaused) {
        return api::make_error(api::ErrorCode::kSandboxBusy,
                               "Sandbox " + id->str() + " is paused; the next command wakes it");
      }
    }
    auto access = plane.connect(*id, config_.sandbox_timeout, deadline, stop);
    if (!access) return std::move(access).error();
    http::HttpEnvd envd(client_, *id, http::route_to(config_, *access, http::kEnvdPort));
    http::DeployOptions options;
    options.agent_path = agent_.path;
    auto address = http::deploy_agent(envd, options, deadline, stop);
    if (!address) return std::move(address).error().during("start the agent");
    log_.info("event=agent_found port=" + std::to_string(address->port) + " build=" + address->build);
    access_ = *std::move(access);
    address_ = *std::move(address);
    return {};
  }

  const Target target_;
  api::Config config_;
  const AgentBinary agent_;
  base::Logger& log_;
  http::HttpClient client_;
  std::stop_source stop_;
  std::atomic<bool> wanted_{true};  // a daemon is started for a command
  std::atomic<bool> forget_{false};
  std::optional<api::SandboxAccess> access_;  // the dialer thread's, as the next
  std::optional<http::AgentAddress> address_;
};

}  // namespace

std::unique_ptr<Dialer> make_sandbox_dialer(const Target& target, const api::Config& config,
                                            AgentBinary agent, base::Logger& log) {
  return std::make_unique<SandboxDialer>(target, config, std::move(agent), log);
}

}  // namespace nearbox::daemon
