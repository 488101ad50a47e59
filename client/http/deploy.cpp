// SPDX-License-Identifier: Apache-2.0
#include "client/http/deploy.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nettle/sha2.h>
#include <nlohmann/json.hpp>

#include "client/api/error_code.h"
#include "client/base/unique_fd.h"
#include "client/http/bounded_json.h"
#include "client/http/random.h"

namespace nearbox::http {
namespace {

using api::Deadline;
using api::ErrorCode;

constexpr std::string_view kNamePrefix = "nearbox-agent-";
constexpr std::string_view kUploadMark = ".new.";
constexpr std::size_t kMaxTold = 600;  // of a failed launcher's output

struct LocalAgent {
  base::UniqueFd fd;
  std::uint64_t size = 0;
  std::string build;
};

bool is_hex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

base::Result<std::string> hash_of(int fd, std::uint64_t size) {
  sha256_ctx context;
  sha256_init(&context);
  std::vector<std::uint8_t> buffer(256 * 1024);
  for (std::uint64_t at = 0; at < size;) {
    const ssize_t n = ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return base::errno_error(n < 0 ? errno : ESTALE, "read the agent");
    sha256_update(&context, static_cast<std::size_t>(n), buffer.data());
    at += static_cast<std::uint64_t>(n);
  }
  std::array<std::uint8_t, SHA256_DIGEST_SIZE> digest{};
  sha256_digest(&context, digest.size(), digest.data());
  std::string text;
  for (const std::uint8_t byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  text.resize(kBuildDigits);
  return text;
}

base::Result<LocalAgent> open_agent(const std::string& path) {
  LocalAgent agent;
  agent.fd.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!agent.fd && errno == ENOENT) return api::fill_error(ErrorCode::kLocalNotFound, {{"PATH", path}});
  if (!agent.fd) return base::last_errno("open " + path);
  struct stat st {};
  if (::fstat(agent.fd.get(), &st) != 0) return base::last_errno("stat " + path);
  if (!S_ISREG(st.st_mode)) return base::errno_error(EINVAL, path + " is no file");
  agent.size = static_cast<std::uint64_t>(st.st_size);
  if (agent.size == 0 || agent.size > kMaxAgentBytes) return base::errno_error(EFBIG, "agent " + path);
  auto build = hash_of(agent.fd.get(), agent.size);
  if (!build) return std::move(build).error();
  agent.build = std::move(*build);
  return agent;
}

// One deployment; its steps share what they need.
class Deployment {
 public:
  Deployment(api::Envd& envd, const LocalAgent& agent, Deadline deadline, std::stop_token stop)
      : envd_(envd), agent_(agent), deadline_(deadline), stop_(std::move(stop)) {}

  base::Result<AgentAddress> in(const std::string& directory);

 private:
  base::Result<bool> is_present(const std::string& path);
  base::Result<void> place(const std::string& directory, const std::string& path);
  base::Result<void> finish_upload(const std::string& uploaded, const std::string& path);
  void remove_stale_uploads(const std::string& directory, const std::string& now);
  base::Result<void> run_quietly(const std::string& cmd, std::vector<std::string> args);
  base::Result<AgentAddress> launch(const std::string& path);

  api::Envd& envd_;
  const LocalAgent& agent_;
  const Deadline deadline_;
  const std::stop_token stop_;
};

base::Result<bool> Deployment::is_present(const std::string& path) {
  auto entry = envd_.stat(path, deadline_, stop_);
  if (entry) {
    return entry->type == api::RemoteEntry::Type::kFile && entry->size == agent_.size &&
           (entry->mode & 0100) != 0;
  }
  if (api::is(entry.error(), ErrorCode::kRemoteNotFound)) return false;
  return std::move(entry).error();
}

base::Result<void> Deployment::run_quietly(const std::string& cmd, std::vector<std::string> args) {
  api::RunSpec spec;
  spec.cmd = cmd;
  spec.args = std::move(args);
  spec.user = "root";
  spec.cwd = "/";
  std::string told;
  api::RunEvents events;
  events.on_stderr = [&](std::string_view bytes) -> base::Result<void> {
    told += bytes.substr(0, kMaxTold - std::min(kMaxTold, told.size()));
    return {};
  };
  auto result = envd_.run(spec, events, deadline_, stop_);
  if (!result) return std::move(result).error();
  if (result->exit_code != 0) return base::errno_error(EIO, cmd + " in the sandbox: " + api::printable(told));
  return {};
}

base::Result<void> Deployment::finish_upload(const std::string& uploaded, const std::string& path) {
  auto entry = envd_.stat(uploaded, deadline_, stop_);
  if (!entry) return std::move(entry).error();
  if (entry->size != agent_.size) return base::errno_error(EIO, "the uploaded agent has another size");
  if (auto done = run_quietly("chmod", {"755", uploaded}); !done) return done;
  // rename(2): whoever else puts the same build there puts the same bytes, and an agent that runs
  // keeps its inode.
  auto moved = envd_.move(uploaded, path, deadline_, stop_);
  if (!moved) return std::move(moved).error();
  return {};
}

base::Result<void> Deployment::place(const std::string& directory, const std::string& path) {
  const std::string uploaded = path + std::string(kUploadMark) + random_hex();
  auto sent = envd_.upload(agent_.fd.get(), agent_.size, uploaded, "root", deadline_, stop_);
  if (sent) sent = finish_upload(uploaded, path);
  if (!sent) {
    // The part that arrived; another client's next upload removes it when this fails too.
    const auto grace = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    (void)envd_.remove(uploaded, grace).ok();
    return sent;
  }
  if (auto now = envd_.stat(path, deadline_, stop_)) remove_stale_uploads(directory, now->modified_at);
  return {};
}

// "2026-01-02T03:04:05.678901Z" → seconds; nullopt for anything else.
std::optional<std::int64_t> seconds_of(const std::string& rfc3339) {
  tm parts{};
  const char* end = ::strptime(rfc3339.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (end == nullptr || !rfc3339.ends_with('Z')) return std::nullopt;
  return static_cast<std::int64_t>(::timegm(&parts));
}

// What others began and never finished. `now` is the sandbox's own time, that of our upload. Not
// being able to is no failure of the deployment.
void Deployment::remove_stale_uploads(const std::string& directory, const std::string& now) {
  const auto present = seconds_of(now);
  auto entries = envd_.list_dir(directory, 1, deadline_, stop_);
  if (!present || !entries) return;
  for (const auto& entry : *entries) {
    const bool upload = entry.name.starts_with(kNamePrefix) &&
                        entry.name.find(kUploadMark) != std::string::npos &&
                        entry.name.find('/') == std::string::npos;
    const auto modified = seconds_of(entry.modified_at);
    if (!upload || entry.type != api::RemoteEntry::Type::kFile || !modified) continue;
    if (*present - *modified < std::chrono::seconds(kStaleUpload).count()) continue;
    (void)envd_.remove(directory + "/" + entry.name, deadline_, stop_).ok();
  }
}

base::Result<AgentAddress> Deployment::launch(const std::string& path) {
  api::RunSpec spec;
  spec.cmd = path;
  spec.args = {"launch"};
  spec.user = "root";
  spec.cwd = "/";
  std::string output, told;
  api::RunEvents events;
  events.on_stdout = [&](std::string_view bytes) -> base::Result<void> {
    if (output.size() + bytes.size() > kMaxLaunchOutput) return base::errno_error(EMSGSIZE, "launcher");
    output += bytes;
    return {};
  };
  events.on_stderr = [&](std::string_view bytes) -> base::Result<void> {
    told += bytes.substr(0, kMaxTold - std::min(kMaxTold, told.size()));
    return {};
  };
  auto result = envd_.run(spec, events, deadline_, stop_);
  if (!result) return std::move(result).error().during("start the agent");
  auto address = parse_launch_line(output);
  if (result->exit_code != 0 || !address) {
    // The output holds the token when the launcher got far: only what it said on stderr is told.
    const std::string why = told.empty() ? result->status : api::printable(told);
    const bool not_runnable = result->exit_code == 126 || result->exit_code == 127;
    return base::errno_error(not_runnable ? ENOEXEC : EIO, "start the agent: " + why);
  }
  if (address->build != agent_.build)
    return base::errno_error(ENOEXEC, "start the agent: it is another build");
  return std::move(*address);
}

base::Result<AgentAddress> Deployment::in(const std::string& directory) {
  const std::string path = directory + "/" + std::string(kNamePrefix) + agent_.build;
  auto present = is_present(path);
  if (!present) return std::move(present).error();
  if (*present) {
    auto address = launch(path);
    // Right name and size, but it does not run as this build: damaged. Put there again.
    if (address || address.error().as_errno() != ENOEXEC) return address;
  }
  if (auto placed = place(directory, path); !placed) return std::move(placed).error().during("put the agent");
  return launch(path);
}

// The directory may be the reason: read-only, missing, a file, mounted noexec, full.
bool may_be_the_directory(const base::Error& error) {
  if (error.code.category() == api::nearbox_category()) {
    return api::is(error, ErrorCode::kRemoteNoSpace) || api::is(error, ErrorCode::kRemotePermission) ||
           api::is(error, ErrorCode::kRemoteNotFound);
  }
  const int value = error.as_errno();
  return value == EIO || value == ENOEXEC || value == EINVAL;
}

}  // namespace

std::optional<AgentAddress> parse_launch_line(std::string_view output) {
  const auto end = output.find('\n');
  if (end == std::string_view::npos || end > kMaxLaunchOutput) return std::nullopt;
  const auto object = parse_bounded(output.substr(0, end));
  if (!object.is_object()) return std::nullopt;
  const auto port = object.find("port"), token = object.find("token"), build = object.find("build");
  if (port == object.end() || token == object.end() || build == object.end()) return std::nullopt;
  if (!port->is_number_unsigned() || !token->is_string() || !build->is_string()) return std::nullopt;
  const auto number = port->get<std::uint64_t>();
  const auto& token_text = token->get_ref<const std::string&>();
  const auto& build_text = build->get_ref<const std::string&>();
  if (number < 1 || number > 65535 || token_text.size() != kAgentTokenDigits || !is_hex(token_text) ||
      build_text.size() != kBuildDigits || !is_hex(build_text)) {
    return std::nullopt;
  }
  return AgentAddress{static_cast<std::uint16_t>(number), base::Secret(token_text), build_text};
}

base::Result<std::string> agent_build(const std::string& path) {
  auto agent = open_agent(path);
  if (!agent) return std::move(agent).error();
  return std::move(agent->build);
}

base::Result<AgentAddress> deploy_agent(api::Envd& envd, const DeployOptions& options, Deadline deadline,
                                        std::stop_token stop) {
  auto agent = open_agent(options.agent_path);
  if (!agent) return std::move(agent).error();
  Deployment deployment(envd, *agent, deadline, stop);
  base::Result<AgentAddress> result = base::errno_error(EINVAL, "no directory to put the agent in");
  for (const auto& directory : options.directories) {
    result = deployment.in(directory);
    if (result || !may_be_the_directory(result.error())) break;
  }
  return result;
}

}  // namespace nearbox::http
