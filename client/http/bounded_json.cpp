// SPDX-License-Identifier: Apache-2.0
#include "client/http/bounded_json.h"

namespace nearbox::http {

using nlohmann::json;

json parse_bounded(std::string_view text, std::size_t max_elements) {
  std::size_t elements = 0;
  bool beyond = false;
  const json::parser_callback_t keep = [&](int depth, json::parse_event_t event, json& /*value*/) {
    using Event = json::parse_event_t;
    const bool opens = event == Event::object_start || event == Event::array_start;
    if (opens && depth >= kMaxJsonDepth) beyond = true;
    if ((opens || event == Event::value) && ++elements > max_elements) beyond = true;
    return !beyond;
  };
  json parsed = json::parse(text, keep, false);
  if (beyond) return json(json::value_t::discarded);
  return parsed;
}

}  // namespace nearbox::http
