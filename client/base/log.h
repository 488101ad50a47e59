// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <string>
#include <string_view>

namespace nearbox::base {

enum class LogLevel : int { kDebug = 0, kInfo = 1, kWarn = 2, kError = 3, kOff = 4 };

// Writes one line an event, `level key=value …`, to a descriptor. Passed in, never global.
//
// error: a person must act; warn: we coped; info: life cycle; debug: a line a request.
// Owns:    nothing; the descriptor outlives the logger.
// Threads: any; a line is one write(2). The level may change at run time.
// Errors:  a line that cannot be written is dropped; a control character is escaped.
class Logger {
 public:
  explicit Logger(int fd = 2, LogLevel level = LogLevel::kWarn) : fd_(fd), level_(level) {}

  bool enabled(LogLevel level) const { return level >= level_.load(std::memory_order_relaxed); }
  void set_level(LogLevel level) { level_.store(level, std::memory_order_relaxed); }
  void set_fd(int fd) { fd_.store(fd, std::memory_order_relaxed); }

  void debug(std::string_view text) { write(LogLevel::kDebug, text); }
  void info(std::string_view text) { write(LogLevel::kInfo, text); }
  void warn(std::string_view text) { write(LogLevel::kWarn, text); }
  void error(std::string_view text) { write(LogLevel::kError, text); }

 private:
  void write(LogLevel level, std::string_view text) noexcept;

  std::atomic<int> fd_;
  std::atomic<LogLevel> level_;
};

}  // namespace nearbox::base
