// SPDX-License-Identifier: Apache-2.0
#include "fs/core/readers.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <fnmatch.h>
#include <unistd.h>
#include <utility>

#include "client/base/unique_fd.h"

namespace nearbox::fs {

using base::MutexLock;

namespace {

constexpr std::size_t kMaxName = 64;
constexpr const char* kOthers = "others";
constexpr const char* kDeleted = " (deleted)";  // what the kernel adds to the path of one that was replaced

// For logs and terminals.
std::string clean(std::string_view text) {
  std::string name(text.substr(0, kMaxName));
  std::replace_if(
      name.begin(), name.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f; },
      '?');
  return name;
}

}  // namespace

Readers::Readers(ReadPolicy policy) : policy_(std::move(policy)) {}

std::string Readers::program(pid_t pid) {
  if (pid <= 0) return "unknown";
  const std::string at = "/proc/" + std::to_string(pid);
  std::array<char, 4096> buffer{};
  if (const auto n = ::readlink((at + "/exe").c_str(), buffer.data(), buffer.size()); n > 0) {
    std::string_view path(buffer.data(), static_cast<std::size_t>(n));
    if (path.ends_with(kDeleted)) path.remove_suffix(std::string_view(kDeleted).size());
    return clean(path.substr(path.rfind('/') + 1));
  }
  const base::UniqueFd comm(::open((at + "/comm").c_str(), O_RDONLY | O_CLOEXEC));
  const auto n = comm ? ::read(comm.get(), buffer.data(), buffer.size()) : -1;
  if (n <= 1) return "unknown";
  return clean({buffer.data(), static_cast<std::size_t>(n - 1)});  // without the newline
}

Readers::Program& Readers::find_locked(const std::string& program, Clock::time_point now) {
  auto it = programs_.find(program);
  if (it == programs_.end()) {
    it = programs_.try_emplace(programs_.size() + 1 < kMaxPrograms ? program : kOthers).first;
    if (it->second.refilled == Clock::time_point{}) {
      it->second.allowance = static_cast<double>(policy_.max_per_hour.value_or(0));
      it->second.refilled = now;
    }
  }
  Program& one = it->second;
  if (policy_.max_per_hour) {
    const auto most = static_cast<double>(*policy_.max_per_hour);
    const std::chrono::duration<double, std::ratio<3600>> hours = now - one.refilled;
    one.allowance = std::min(most, one.allowance + most * std::max(0.0, hours.count()));
    one.refilled = std::max(one.refilled, now);
  }
  return one;
}

int Readers::admit(const std::string& program, Clock::time_point now) {
  const bool denied = std::any_of(policy_.deny.begin(), policy_.deny.end(), [&](const std::string& pattern) {
    return ::fnmatch(pattern.c_str(), program.c_str(), 0) == 0;
  });
  MutexLock lock(mu_);
  Program& one = find_locked(program, now);
  if (!denied && (!policy_.max_per_hour || one.allowance > 0)) return 0;
  ++one.refused;
  return denied ? EACCES : EDQUOT;
}

void Readers::fetched(const std::string& program, std::uint64_t bytes, Clock::time_point now) {
  if (bytes == 0) return;
  MutexLock lock(mu_);
  Program& one = find_locked(program, now);
  one.fetched_bytes += bytes;
  if (policy_.max_per_hour) one.allowance -= static_cast<double>(bytes);
}

std::vector<ProgramStats> Readers::programs() const {
  std::vector<ProgramStats> list;
  {
    MutexLock lock(mu_);
    for (const auto& [name, one] : programs_) list.push_back({name, one.fetched_bytes, one.refused});
  }
  std::stable_sort(list.begin(), list.end(), [](const ProgramStats& a, const ProgramStats& b) {
    return a.fetched_bytes > b.fetched_bytes;
  });
  return list;
}

}  // namespace nearbox::fs
