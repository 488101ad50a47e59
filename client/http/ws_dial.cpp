// SPDX-License-Identifier: Apache-2.0
#include "client/http/ws_dial.h"

#include "client/channel/ws_client.h"
#include "client/http/curl_carrier.h"

namespace nearbox::http {

base::Result<std::unique_ptr<channel::Carrier>> dial_agent(const Route& route, channel::Deadline deadline,
                                                           std::stop_token stop) {
  auto raw = CurlCarrier::connect(route.base_url, deadline, std::move(stop));
  if (!raw) return std::move(raw).error();
  channel::HttpFields fields{{"User-Agent", "nearbox/" NEARBOX_VERSION}};
  for (const auto& header : route.headers) fields.emplace_back(header.name, header.value);
  for (const auto& [name, secret] : route.secrets) fields.emplace_back(name, secret.reveal());
  const std::string prefix = route.base_url.substr(origin_of(route.base_url).size());
  return channel::upgrade_websocket(std::move(*raw), host_of(route.base_url), prefix + kAgentPath, fields,
                                    deadline);
}

}  // namespace nearbox::http
