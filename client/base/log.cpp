// SPDX-License-Identifier: Apache-2.0
#include "client/base/log.h"

#include <ctime>
#include <unistd.h>

namespace nearbox::base {
namespace {

constexpr const char* kNames[] = {"debug", "info", "warn", "error"};
constexpr std::size_t kMaxLine = 4096;

}  // namespace

void Logger::write(LogLevel level, std::string_view text) noexcept {
  if (!enabled(level)) return;
  char line[kMaxLine];
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc{};
  gmtime_r(&now.tv_sec, &utc);
  std::size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%SZ ", &utc);
  for (const char* p = kNames[static_cast<int>(level)]; *p != '\0'; ++p) line[n++] = *p;
  line[n++] = ' ';
  for (const char c : text) {
    if (n + 5 >= sizeof line) break;
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u != 0x7f) {
      line[n++] = c;
    } else {
      line[n++] = '\\';
      line[n++] = 'x';
      line[n++] = "0123456789abcdef"[u >> 4];
      line[n++] = "0123456789abcdef"[u & 15];
    }
  }
  line[n++] = '\n';
  if (::write(fd_.load(std::memory_order_relaxed), line, n) < 0) return;
}

}  // namespace nearbox::base
