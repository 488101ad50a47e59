// SPDX-License-Identifier: Apache-2.0
#include "client/http/random.h"

#include <cstdio>
#include <cstdlib>
#include <sys/random.h>

namespace nearbox::http {

std::uint64_t random_u64() {
  std::uint64_t value = 0;
  // Up to 256 bytes come whole once the pool is ready (getrandom(2)).
  if (::getrandom(&value, sizeof value, 0) != static_cast<ssize_t>(sizeof value)) std::abort();
  return value;
}

std::string random_hex() {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(random_u64()));
  return text;
}

}  // namespace nearbox::http
