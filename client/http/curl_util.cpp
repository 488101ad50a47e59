// SPDX-License-Identifier: Apache-2.0
#include "client/http/curl_util.h"

#include <cstdlib>
#include <mutex>

#include "client/api/error_code.h"

namespace nearbox::http {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_loopback(std::string_view host) {
  const auto name =
      host.starts_with('[') ? host.substr(0, host.find(']') + 1) : host.substr(0, host.find(':'));
  return name == "localhost" || name == "[::1]" || name.starts_with("127.");
}

}  // namespace

void global_init() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) std::abort();
  });
}

CaPaths ca_paths_from_environment() {
  CaPaths paths{variable("SSL_CERT_FILE"), variable("SSL_CERT_DIR")};
  if (paths.file.empty()) paths.file = variable("CURL_CA_BUNDLE");
  return paths;
}

void apply_ca_paths(CURL* easy, const CaPaths& paths) {
  if (!paths.file.empty()) curl_easy_setopt(easy, CURLOPT_CAINFO, paths.file.c_str());
  if (!paths.directory.empty()) curl_easy_setopt(easy, CURLOPT_CAPATH, paths.directory.c_str());
}

void apply_proxy_rules(CURL* easy, const std::string& url) {
  if (is_loopback(host_of(url))) curl_easy_setopt(easy, CURLOPT_PROXY, "");
}

bool is_plain_url(std::string_view url) {
  if (!url.starts_with("http://") && !url.starts_with("https://")) return false;
  for (const char c : url) {
    if (static_cast<unsigned char>(c) <= 0x20 || static_cast<unsigned char>(c) >= 0x7f) return false;
  }
  const std::string host = host_of(url);
  return !host.empty() && host.find('@') == std::string::npos && host.find('\\') == std::string::npos;
}

std::string host_of(std::string_view url) {
  const auto scheme = url.find("://");
  if (scheme != std::string_view::npos) url.remove_prefix(scheme + 3);
  return std::string(url.substr(0, url.find_first_of("/?#")));
}

std::string origin_of(std::string_view url) {
  const auto scheme = url.find("://");
  const auto start = scheme == std::string_view::npos ? 0 : scheme + 3;
  const auto end = url.find_first_of("/?#", start);
  return std::string(url.substr(0, end));
}

base::Error curl_error(CURLcode code, std::string_view url, std::string_view detail,
                       std::chrono::milliseconds waited) {
  using api::ErrorCode;
  const std::string host = host_of(url);
  const std::string why = detail.empty() ? curl_easy_strerror(code) : api::printable(detail);
  switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
      return api::fill_error(ErrorCode::kTimeoutRequest,
                             {{"HOST", host}, {"N", std::to_string(waited.count())}});
    case CURLE_ABORTED_BY_CALLBACK:
      return api::fill_error(ErrorCode::kCancelled);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_CRL_BADFILE:
    case CURLE_SSL_INVALIDCERTSTATUS:
      return api::fill_error(ErrorCode::kNetTls, {{"HOST", host}, {"WHY", why}});
    case CURLE_OUT_OF_MEMORY:
    case CURLE_FAILED_INIT:
    case CURLE_BAD_FUNCTION_ARGUMENT:
    case CURLE_UNKNOWN_OPTION:
      return api::fill_error(ErrorCode::kInternal, {{"WHAT", why}, {"ID", "curl"}});
    case CURLE_URL_MALFORMAT:
      return api::fill_error(ErrorCode::kArgInvalid, {{"NAME", "address " + host}, {"WHY", why}});
    default:
      return api::fill_error(ErrorCode::kNetUnreachable, {{"HOST", host}, {"WHY", why}});
  }
}

}  // namespace nearbox::http
