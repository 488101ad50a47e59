// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdlib>
#include <fcntl.h>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

#include "client/api/error_code.h"
#include "client/base/mutex.h"
#include "client/base/unique_fd.h"
#include "client/channel/spawn_carrier.h"
#include "tools/daemon/dialer.h"
#include "tools/daemon/parse_token.h"

namespace nearbox::daemon {
namespace {

constexpr std::size_t kMaxLine = 1024;
constexpr std::size_t kMaxBanner = 64 * 1024;  // what a login shell may say before our first line
constexpr std::string_view kHave = "nearbox-have";
constexpr std::string_view kNeed = "nearbox-need";

// Splits a command given in an environment variable at blanks.
std::vector<std::string> words(const char* variable, const char* fallback) {
  const char* value = std::getenv(variable);
  std::istringstream in(value != nullptr && *value != '\0' ? value : fallback);
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  if (out.empty()) out.emplace_back(fallback);
  return out;
}

// Finds the agent by its content hash or takes it from stdin under a new name, then becomes its relay.
// The directory belongs to the user alone; in /tmp it is refused when it is somebody else's.
std::string bootstrap(const AgentBinary& agent, std::size_t size) {
  std::string script =
      "umask 077; h=@H@; n=@N@; "
      "for d in \"${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/nearbox\" \"/tmp/nearbox-$(id -u)\"; do "
      "mkdir -p \"$d\" 2>/dev/null && [ -O \"$d\" ] && [ -w \"$d\" ] && break; d=; done; "
      "[ -n \"$d\" ] || { echo 'nearbox: no directory for the agent' >&2; exit 73; }; "
      "p=\"$d/nearbox-agent-$h\"; "
      "if [ -x \"$p\" ]; then echo nearbox-have; else echo nearbox-need; "
      "t=\"$p.new.$$\"; head -c \"$n\" > \"$t\" && [ \"$(wc -c < \"$t\")\" -eq \"$n\" ] && chmod 700 \"$t\" "
      "&& "
      "mv -f \"$t\" \"$p\" || { rm -f \"$t\"; exit 74; }; fi; exec \"$p\" connect";
  script.replace(script.find("@H@"), 3, agent.build);
  script.replace(script.find("@N@"), 3, std::to_string(size));
  return script;
}

// One word for a remote POSIX shell.
std::string quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

base::Result<std::string> read_line(channel::Carrier& carrier, channel::Deadline deadline) {
  std::string line;
  while (true) {
    std::array<std::byte, 1> one{};
    auto n = carrier.read(one, deadline);
    if (!n) return std::move(n).error();
    if (*n == 0) return base::errno_error(ECONNRESET, "it ended before the agent answered");
    const char c = static_cast<char>(one[0]);
    if (c == '\n') {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return line;
    }
    line += c;
    if (line.size() > kMaxLine) line.erase(0, 1);
  }
}

// Reads lines until one begins with one of the words; what comes before is a banner.
base::Result<std::string> await_line(channel::Carrier& carrier, std::string_view a, std::string_view b,
                                     channel::Deadline deadline) {
  std::size_t seen = 0;
  while (true) {
    auto line = read_line(carrier, deadline);
    if (!line) return line;
    if (line->starts_with(a) || (!b.empty() && line->starts_with(b))) return line;
    seen += line->size() + 1;
    if (seen > kMaxBanner)
      return base::errno_error(EPROTO, "the shell there prints too much before its first command");
  }
}

base::Result<void> send_file(channel::Carrier& carrier, const std::string& path, channel::Deadline deadline) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return base::last_errno("open " + path);
  std::vector<std::byte> buffer(256 * 1024);
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0) return base::last_errno("read " + path);
    if (n == 0) return {};
    auto sent = carrier.write(wire::ByteView(buffer).first(static_cast<std::size_t>(n)), deadline);
    if (!sent) return sent;
  }
}

// The agent over the stdio of a command: ssh, docker exec.
class StdioDialer : public Dialer {
 public:
  StdioDialer(StdioConfig config, AgentBinary agent, base::Logger& log)
      : config_(std::move(config)), agent_(std::move(agent)), log_(log) {}

  base::Result<channel::Dialled> dial(wire::Role role, channel::Deadline deadline) override {
    (void)role;
    struct stat st {};
    if (::stat(agent_.path.c_str(), &st) != 0) return base::last_errno("agent " + agent_.path);
    const auto size = static_cast<std::size_t>(st.st_size);
    auto argv = config_.prefix;
    const auto script = bootstrap(agent_, size);
    if (config_.remote_shell) {
      argv.push_back("exec sh -c " + quoted(script));
    } else {
      argv.insert(argv.end(), {"sh", "-c", script});
    }
    auto spawned = channel::spawn_carrier(argv);
    if (!spawned) return unreachable(std::move(spawned).error());
    auto dialled = begin(**spawned) ? handshake(**spawned, deadline)
                                    : base::Result<wire::Token>(base::errno_error(ESHUTDOWN));
    {
      base::MutexLock lock(mu_);
      dialling_ = nullptr;
    }
    if (!dialled) return unreachable(std::move(dialled).error());
    return channel::Dialled{*std::move(spawned), *dialled};
  }

  bool is_final(const base::Error&) const override { return false; }
  std::string describe() const override { return config_.name; }
  void abort() override {
    base::MutexLock lock(mu_);
    aborted_ = true;
    if (dialling_ != nullptr) dialling_->shutdown();
  }

 private:
  bool begin(channel::Carrier& carrier) {
    base::MutexLock lock(mu_);
    if (!aborted_) dialling_ = &carrier;
    return !aborted_;
  }
  base::Result<wire::Token> handshake(channel::Carrier& carrier, channel::Deadline deadline) {
    auto line = await_line(carrier, kHave, kNeed, deadline);
    if (!line) return std::move(line).error();
    if (line->starts_with(kNeed)) {
      log_.info("event=agent_upload to=" + config_.name);
      if (auto sent = send_file(carrier, agent_.path, deadline); !sent) return std::move(sent).error();
    }
    auto first = await_line(carrier, "nearbox-agent ", "", deadline);
    if (!first) return std::move(first).error();
    const auto space = first->rfind(' ');
    if (first->substr(14, space - 14) != agent_.build) {
      return base::errno_error(EPROTO, "the agent there is not the one that was sent; remove nearbox-agent-" +
                                           agent_.build + " in its cache directory");
    }
    return parse_token(std::string_view(*first).substr(space + 1));
  }

  // The carrier's error holds what the command said on stderr.
  base::Error unreachable(const base::Error& error) const {
    return api::make_error(api::ErrorCode::kNetUnreachable, "Cannot reach " + config_.name + ": " +
                                                                error.message() + "; try `" +
                                                                config_.prefix.front() + "` by hand");
  }

  StdioConfig config_;
  AgentBinary agent_;
  base::Logger& log_;
  base::Mutex mu_;  // rank: leaf
  channel::Carrier* dialling_ GUARDED_BY(mu_) = nullptr;
  bool aborted_ GUARDED_BY(mu_) = false;
};

}  // namespace

StdioConfig ssh_config(const std::string& host) {
  StdioConfig config;
  config.prefix = words("NEARBOX_SSH", "ssh");
  for (const char* option :
       {"BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ClearAllForwardings=yes"}) {
    config.prefix.insert(config.prefix.end(), {"-o", option});
  }
  std::string plain = host;
  std::erase_if(plain, [](char c) { return c == '[' || c == ']'; });
  config.prefix.insert(config.prefix.end(), {"-T", "--", plain});
  config.remote_shell = true;
  config.name = "ssh:" + host;
  return config;
}

StdioConfig docker_config(const std::string& container) {
  StdioConfig config;
  config.prefix = words("NEARBOX_DOCKER", "docker");
  config.prefix.insert(config.prefix.end(), {"exec", "-i", container});
  config.name = "docker:" + container;
  return config;
}

std::unique_ptr<Dialer> make_stdio_dialer(StdioConfig config, AgentBinary agent, base::Logger& log) {
  return std::make_unique<StdioDialer>(std::move(config), std::move(agent), log);
}

}  // namespace nearbox::daemon
