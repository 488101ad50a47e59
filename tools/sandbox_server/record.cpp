// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/record.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "client/base/unique_fd.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

using nlohmann::json;

constexpr const char* kMagic = "nearbox sandbox";
constexpr int kVersion = 1;
// More than a request that makes a sandbox can be.
constexpr std::size_t kMaxRecord = 64 * 1024 * 1024;

std::int64_t milliseconds_of(WallClock::time_point time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
}

WallClock::time_point time_of(std::int64_t milliseconds) {
  return WallClock::time_point(std::chrono::milliseconds(milliseconds));
}

json to_json(const SandboxRecord& record) {
  const auto& spec = record.spec;
  json out = {{"magic", kMagic},
              {"version", kVersion},
              {"id", record.id},
              {"template", spec.template_id},
              {"metadata", spec.metadata},
              {"envs", spec.envs},
              {"binds", spec.binds},
              {"timeout", spec.timeout.count()},
              {"autoPause", spec.auto_pause},
              {"autoPauseMemory", spec.auto_pause_memory},
              {"autoResume", spec.auto_resume},
              {"secure", spec.secure},
              {"publicTraffic", spec.public_traffic},
              {"maskHost", spec.mask_host},
              {"idempotencyKey", spec.idempotency_key},
              {"mode", static_cast<int>(record.mode)},
              {"token", record.token.reveal()},
              {"trafficToken", record.traffic_token.reveal()},
              {"started", milliseconds_of(record.started)},
              {"ends", milliseconds_of(record.ends)}};
  if (spec.internet) out["internet"] = *spec.internet;
  return out;
}

SandboxRecord from_json(const json& in) {
  SandboxRecord record;
  record.id = in.at("id").get<std::string>();
  auto& spec = record.spec;
  spec.template_id = in.at("template").get<std::string>();
  spec.metadata = in.at("metadata").get<std::map<std::string, std::string>>();
  spec.envs = in.at("envs").get<std::map<std::string, std::string>>();
  spec.binds = in.at("binds").get<std::vector<std::string>>();
  spec.timeout = std::chrono::seconds(in.at("timeout").get<std::int64_t>());
  spec.auto_pause = in.at("autoPause").get<bool>();
  spec.auto_pause_memory = in.at("autoPauseMemory").get<bool>();
  spec.auto_resume = in.at("autoResume").get<bool>();
  spec.secure = in.at("secure").get<bool>();
  spec.public_traffic = in.at("publicTraffic").get<bool>();
  spec.mask_host = in.at("maskHost").get<std::string>();
  spec.idempotency_key = in.at("idempotencyKey").get<std::string>();
  if (const auto internet = in.find("internet"); internet != in.end()) spec.internet = internet->get<bool>();
  const int mode = in.at("mode").get<int>();
  if (mode < 0 || mode > static_cast<int>(IsolationMode::kPlain)) return {};  // no id: no record
  record.mode = static_cast<IsolationMode>(mode);
  record.token = base::Secret(in.at("token").get<std::string>());
  record.traffic_token = base::Secret(in.at("trafficToken").get<std::string>());
  record.started = time_of(in.at("started").get<std::int64_t>());
  record.ends = time_of(in.at("ends").get<std::int64_t>());
  return record;
}

base::Result<void> write_file(const std::string& path, const std::string& text) {
  base::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return base::last_errno("open " + path);
  for (std::size_t done = 0; done < text.size();) {
    const auto written = ::write(fd.get(), text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return base::last_errno("write " + path);
    done += static_cast<std::size_t>(written);
  }
  if (::fsync(fd.get()) != 0) return base::last_errno("fsync " + path);
  if (const auto error = fd.close()) return base::Error{error, "close " + path};
  return {};
}

}  // namespace

base::Result<void> write_record(const std::string& path, const SandboxRecord& record) {
  const auto fresh = path + ".new";
  const auto text = to_json(record).dump(-1, ' ', true, json::error_handler_t::replace);
  if (auto written = write_file(fresh, text); !written) {
    (void)::unlink(fresh.c_str());
    return written;
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0) return base::last_errno("rename " + fresh);
  const base::UniqueFd parent(
      ::open(path.substr(0, path.rfind('/')).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent || ::fsync(parent.get()) != 0) return base::last_errno("fsync the directory of " + path);
  return {};
}

base::Result<SandboxRecord> read_record(const std::string& path) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  struct stat st {};
  if (!fd || ::fstat(fd.get(), &st) != 0) return base::last_errno("open " + path);
  if (!S_ISREG(st.st_mode) || static_cast<std::size_t>(st.st_size) > kMaxRecord)
    return base::errno_error(EBADMSG, "read " + path);
  std::string text(static_cast<std::size_t>(st.st_size), '\0');
  std::size_t size = 0;
  while (size < text.size()) {
    const auto got = ::read(fd.get(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return base::last_errno("read " + path);
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  text.resize(size);
  try {
    const auto in = json::parse(text);
    if (in.at("magic") != kMagic || in.at("version") != kVersion)
      return base::errno_error(EBADMSG, path + " is of another version");
    auto record = from_json(in);
    if (!valid_sandbox_id(record.id)) return base::errno_error(EBADMSG, "read " + path);
    return record;
  } catch (const json::exception&) {
    return base::errno_error(EBADMSG, "read " + path);
  }
}

}  // namespace nearbox::sandbox_server
