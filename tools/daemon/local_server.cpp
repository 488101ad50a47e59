// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/local_server.h"

#include <fcntl.h>
#include <fstream>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

#include "client/api/error_code.h"
#include "client/api/state_dir.h"
#include "tools/daemon/control.h"
#include "tools/daemon/spawn.h"

namespace nearbox::daemon {
namespace {

base::Result<std::string> serve_dir() {
  auto state = api::state_dir(api::process_environment());
  if (!state) return state;
  auto path = *state + "/serve";
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return base::last_errno("mkdir " + path);
  return path;
}

base::Result<base::UniqueFd> open_lock(const std::string& dir) {
  const auto path = dir + "/lock";
  base::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return base::last_errno("open " + path);
  return fd;
}

struct flock whole_file() {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

base::Result<base::UniqueFd> try_lock(const std::string& dir) {
  auto fd = open_lock(dir);
  if (!fd) return fd;
  auto lock = whole_file();
  if (::fcntl(fd->get(), F_OFD_SETLK, &lock) == 0) return fd;
  if (errno == EAGAIN || errno == EACCES) return base::errno_error(EBUSY, "the embedded server's lock");
  return base::last_errno("lock " + dir);
}

// Looks without taking it: a server that starts meanwhile is not disturbed.
bool is_locked(const std::string& dir) {
  auto fd = open_lock(dir);
  if (!fd) return false;
  auto lock = whole_file();
  return ::fcntl(fd->get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

std::string state_file(const std::string& dir) { return dir + "/server.json"; }

}  // namespace

base::Result<std::optional<LocalServer>> find_local_server() {
  auto dir = serve_dir();
  if (!dir) return std::move(dir).error();
  if (!is_locked(*dir)) return std::optional<LocalServer>();
  std::ifstream in(state_file(*dir));
  std::stringstream text;
  text << in.rdbuf();
  auto value = parse_json(text.str());
  if (!value || !value->is_object()) return std::optional<LocalServer>();
  LocalServer server;
  server.api_url = value->value("api_url", "");
  server.sandbox_url = value->value("sandbox_url", "");
  server.api_key = base::Secret(value->value("api_key", ""));
  server.pid = value->value("pid", 0);
  if (server.api_url.empty()) return std::optional<LocalServer>();
  return std::optional<LocalServer>(std::move(server));
}

base::Result<LocalServer> ensure_local_server(std::chrono::steady_clock::time_point deadline) {
  auto found = find_local_server();
  if (!found) return std::move(found).error();
  if (*found) return **std::move(found);
  auto dir = serve_dir();
  if (!dir) return std::move(dir).error();
  auto report = spawn_self({"nearbox", "serve", "--json"}, *dir + "/log");
  if (!report) return std::move(report).error();
  auto line = read_report(report->get(), deadline);
  if (!line) {
    return api::make_error(
        api::ErrorCode::kNetUnreachable,
        "Cannot reach the embedded server: " + line.error().message() + "; its log is " + *dir + "/log");
  }
  // It publishes its state file before it prints; another command may have been quicker.
  found = find_local_server();
  if (!found) return std::move(found).error();
  if (*found) return **std::move(found);
  return api::make_error(api::ErrorCode::kNetUnreachable,
                         "Cannot reach the embedded server: it ended; its log is " + *dir + "/log");
}

base::Result<LocalServerRecord> LocalServerRecord::take() {
  auto dir = serve_dir();
  if (!dir) return std::move(dir).error();
  auto lock = try_lock(*dir);
  if (!lock) return std::move(lock).error();
  return LocalServerRecord(*dir, *std::move(lock));
}

base::Result<void> LocalServerRecord::publish(const LocalServer& server) {
  const nlohmann::json value = {{"api_url", server.api_url},
                                {"sandbox_url", server.sandbox_url},
                                {"api_key", server.api_key.reveal()},
                                {"pid", server.pid}};
  const auto path = state_file(dir_);
  const auto temporary = path + ".new";
  (void)::unlink(temporary.c_str());
  base::UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return base::last_errno("open " + temporary);
  const auto text = value.dump();
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return base::last_errno("write " + temporary);
  }
  if (const auto error = fd.close()) return base::Error{error, "close " + temporary};
  if (::rename(temporary.c_str(), path.c_str()) != 0) return base::last_errno("rename " + temporary);
  return {};
}

LocalServerRecord::~LocalServerRecord() {
  if (lock_) (void)::unlink(state_file(dir_).c_str());
}

}  // namespace nearbox::daemon
