// SPDX-License-Identifier: Apache-2.0
#include "client/api/state_dir.h"

#include <cstdlib>
#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include "client/base/unique_fd.h"

namespace nearbox::api {
namespace {

constexpr std::size_t kMaxPasswdEntry = 64 * 1024;

std::optional<std::string> absolute(const Environment& env, const char* name) {
  auto value = env(name);
  if (!value || value->empty() || value->front() != '/') return std::nullopt;
  return value;
}

// mkdir -p with mode 0700 for what is missing.
base::Result<void> make_dirs(const std::string& path) {
  for (std::size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at);
    const std::string part = path.substr(0, at);
    if (::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST)
      return base::last_errno("make directory " + part);
    if (at != std::string::npos) ++at;
  }
  return {};
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
}

base::Result<std::string> home_dir(const Environment& env) {
  if (auto home = absolute(env, "HOME")) return *home;
  std::vector<char> buffer(kMaxPasswdEntry);
  passwd entry{};
  passwd* found = nullptr;
  const int rc = getpwuid_r(geteuid(), &entry, buffer.data(), buffer.size(), &found);
  if (rc != 0) return base::errno_error(rc, "look up the home directory");
  if (found == nullptr || found->pw_dir == nullptr || found->pw_dir[0] != '/') {
    return base::errno_error(ENOENT, "HOME is not set and the user database has no home directory");
  }
  return std::string(found->pw_dir);
}

base::Result<std::string> user_config_path(const Environment& env) {
  if (auto base_dir = absolute(env, "XDG_CONFIG_HOME")) return *base_dir + "/nearbox/config.toml";
  auto home = home_dir(env);
  if (!home) return std::move(home).error();
  return *home + "/.config/nearbox/config.toml";
}

base::Result<std::string> state_dir(const Environment& env) {
  std::string path;
  if (auto base_dir = absolute(env, "XDG_STATE_HOME")) {
    path = *base_dir + "/nearbox";
  } else {
    auto home = home_dir(env);
    if (!home) return std::move(home).error();
    path = *home + "/.local/state/nearbox";
  }
  if (auto made = make_dirs(path); !made) return std::move(made).error();
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return base::last_errno("state directory " + path);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return base::last_errno("state directory " + path);
  if (st.st_uid != geteuid()) {
    return base::errno_error(EPERM, "state directory " + path + " belongs to another user");
  }
  if ((st.st_mode & 0077) != 0 && ::fchmod(fd.get(), 0700) != 0) {
    return base::last_errno("close state directory " + path + " to others");
  }
  return path;
}

}  // namespace nearbox::api
