// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "client/api/error_code.h"
#include "tools/cli/app.h"

namespace nearbox::cli {

void print_json(const nlohmann::json& value) {
  const auto text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::printf("%s\n", text.c_str());
  (void)std::fflush(stdout);
}

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u != 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += "0123456789abcdef"[u >> 4];
      out += "0123456789abcdef"[u & 15];
    }
  }
  return out;
}

int fail(const App& app, const base::Error& error) {
  if (app.json) {
    std::printf("%s\n", api::error_json(error).c_str());
    (void)std::fflush(stdout);
  } else {
    std::fprintf(stderr, "nearbox: %s\n", printable(api::error_text(error)).c_str());
  }
  return api::exit_code(error);
}

}  // namespace nearbox::cli
