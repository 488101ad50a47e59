// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/control_errors.h"

#include "client/api/error_code.h"

namespace nearbox::daemon {

nlohmann::json error_object(const base::Error& error) {
  nlohmann::json out = {{"error", api::error_text(error)},
                        {"errorCode", std::string(api::code_string(error))},
                        {"retryable", api::is_retryable(error)},
                        {"exit", api::exit_code(error)}};
  if (error.code.category() == api::nearbox_category()) {
    out["code"] = error.code.value();
  } else {
    out["errno"] = error.as_errno();
  }
  return out;
}

base::Error error_from(const nlohmann::json& object) {
  if (!object.is_object()) return base::errno_error(EPROTO, "the daemon's answer");
  const auto number_of = [&object](const char* key, int otherwise) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_integer() ? found->get<int>() : otherwise;
  };
  const auto code = number_of("code", 0);
  const auto said = object.find("error");
  std::string text = said != object.end() && said->is_string() ? said->get<std::string>() : "unknown error";
  if (code > 0 && code <= static_cast<int>(api::error_table().size())) {
    return api::make_error(static_cast<api::ErrorCode>(code), std::move(text));
  }
  const int number = number_of("errno", EIO);
  // The daemon's text ends with the errno's own; message() adds it again.
  const auto own = std::generic_category().message(number);
  if (text.ends_with(": " + own)) text.erase(text.size() - own.size() - 2);
  return base::errno_error(number, text == own ? std::string() : std::move(text));
}

}  // namespace nearbox::daemon
