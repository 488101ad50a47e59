// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/target.h"

#include <algorithm>

#include "client/api/error_code.h"

namespace nearbox::daemon {
namespace {

constexpr std::size_t kMaxTarget = 4352;  // a name and a path

base::Error bad(std::string_view text, std::string_view why) {
  return api::make_error(api::ErrorCode::kArgInvalid,
                         "SANDBOX '" + std::string(text.substr(0, 80)) +
                             "' is not valid: " + std::string(why) +
                             "; use ID[:DIR], local:NAME[:DIR], ssh:HOST[:DIR] or docker:CONTAINER[:DIR]");
}

bool is_id(std::string_view name) {
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); });
}

// Splits "NAME[:DIR]"; a NAME in brackets may hold colons.
void split(std::string_view rest, Target& target) {
  std::size_t from = 0;
  if (const auto open = rest.find('['); open != std::string_view::npos && open <= rest.find(':')) {
    from = rest.find(']', open);
    if (from == std::string_view::npos) from = 0;
  }
  const auto colon = rest.find(':', from);
  target.name = rest.substr(0, colon);
  if (colon != std::string_view::npos) target.dir = rest.substr(colon + 1);
}

}  // namespace

std::string Target::sandbox() const {
  switch (provider) {
    case Provider::kE2b:
      return name;
    case Provider::kLocal:
      return "local:" + name;
    case Provider::kSsh:
      return "ssh:" + name;
    case Provider::kDocker:
      return "docker:" + name;
  }
  return name;
}

base::Result<Target> parse_target(std::string_view text, bool local) {
  if (text.empty()) return bad(text, "it is empty");
  if (text.size() > kMaxTarget) return bad(text, "it is too long");
  if (text.find('\0') != std::string_view::npos || text.find('\n') != std::string_view::npos) {
    return bad(text, "it holds a control character");
  }
  Target target;
  const auto take = [&](std::string_view prefix, Provider provider) {
    if (!text.starts_with(prefix)) return false;
    target.provider = provider;
    split(text.substr(prefix.size()), target);
    return true;
  };
  if (!take("local:", Provider::kLocal) && !take("ssh:", Provider::kSsh) &&
      !take("docker:", Provider::kDocker)) {
    split(text, target);
    target.provider = local ? Provider::kLocal : Provider::kE2b;
    if (!local && !is_id(target.name)) return bad(text, "a sandbox id has only letters a-z and digits");
  }
  if (target.name.empty()) return bad(text, "the name is missing");
  if (target.name.front() == '-') return bad(text, "a name cannot begin with '-'");
  return target;
}

}  // namespace nearbox::daemon
