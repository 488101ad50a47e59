// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include <curl/curl.h>

#include "client/base/result.h"

// What the users of libcurl share.
namespace nearbox::http {

// curl_global_init, once in the process. Programs call it before their first thread.
void global_init();

struct CaPaths {
  std::string file, directory;  // empty: libcurl's own
};
// SSL_CERT_FILE (or CURL_CA_BUNDLE) and SSL_CERT_DIR, which the library, unlike the tool, does not read.
CaPaths ca_paths_from_environment();
void apply_ca_paths(CURL* easy, const CaPaths& paths);
// A proxy is never asked for this machine itself.
void apply_proxy_rules(CURL* easy, const std::string& url);

// http(s)://HOST… without control characters, user names or spaces.
bool is_plain_url(std::string_view url);
// "api.e2b.app:8443" of a URL, for errors; no query, no path.
std::string host_of(std::string_view url);
// "https://api.e2b.app", for finding a connection again.
std::string origin_of(std::string_view url);

// Our error for a failed transfer: net.unreachable, net.tls, timeout.request, cancelled, internal.
base::Error curl_error(CURLcode code, std::string_view url, std::string_view detail,
                       std::chrono::milliseconds waited);

}  // namespace nearbox::http
