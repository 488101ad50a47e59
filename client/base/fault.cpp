// SPDX-License-Identifier: Apache-2.0
#include "client/base/fault.h"

#if defined(NEARBOX_FAULT_POINTS)

#include <chrono>
#include <cstdlib>
#include <fcntl.h>
#include <fnmatch.h>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "client/base/unique_fd.h"

namespace nearbox::base::fault {
namespace {

struct State {
  Mutex mu;
  std::string path GUARDED_BY(mu);
  bool init GUARDED_BY(mu) = false;
  std::chrono::steady_clock::time_point looked GUARDED_BY(mu);
  std::vector<std::pair<std::string, std::string>> points GUARDED_BY(mu);
};

State& state() {
  static State* const s = new State;  // lives as long as the last thread
  return *s;
}

std::vector<std::pair<std::string, std::string>> parse(const std::string& path) {
  std::vector<std::pair<std::string, std::string>> points;
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return points;
  std::string text(65536, '\0');
  const ssize_t n = ::read(fd.get(), text.data(), text.size());
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  std::size_t at = 0;
  while (at < text.size()) {
    auto end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(at, end - at);
    const auto space = line.find(' ');
    if (!line.empty()) {
      points.emplace_back(line.substr(0, space), space == std::string::npos ? "" : line.substr(space + 1));
    }
    at = end + 1;
  }
  return points;
}

}  // namespace

void set_file(std::string_view path) {
  State& s = state();
  MutexLock lock(s.mu);
  if (std::getenv("NEARBOX_FAULT_FILE") != nullptr) return;
  s.path = path;
  s.init = true;
}

bool active(std::string_view name, std::string_view subject) noexcept {
  State& s = state();
  MutexLock lock(s.mu);
  if (!s.init) {
    s.init = true;
    const char* path = std::getenv("NEARBOX_FAULT_FILE");
    s.path = path == nullptr ? "" : path;
  }
  if (s.path.empty()) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now - s.looked > std::chrono::milliseconds(20)) {
    s.looked = now;
    s.points = parse(s.path);
  }
  for (const auto& [point, pattern] : s.points) {
    if (point != name) continue;
    if (pattern.empty()) return true;
    if (fnmatch(pattern.c_str(), std::string(subject).c_str(), 0) == 0) return true;
  }
  return false;
}

}  // namespace nearbox::base::fault

#endif
