// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/state_file.h"

#include <charconv>
#include <cstdlib>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/agent/small_file.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kMaxStateBytes = 4096;
constexpr int kLockStep = 20;  // ms between tries
constexpr std::string_view kDigits = "0123456789abcdef";

// Takes `"key":` and then the number or string off the front.
bool take(std::string_view& text, std::string_view literal) {
  if (text.substr(0, literal.size()) != literal) return false;
  text.remove_prefix(literal.size());
  return true;
}

template <class T>
bool take_number(std::string_view& text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool take_string(std::string_view& text, std::string& out) {
  const auto end = text.find('"');
  if (end == std::string_view::npos) return false;
  out = text.substr(0, end);
  text.remove_prefix(end + 1);
  return out.find('\\') == std::string::npos;
}

bool plain(const std::string& path) {
  return path.find_first_of("\"\\\n") == std::string::npos;  // what the state file can hold
}

base::Result<std::string> claim(const std::string& path) {
  if (!plain(path)) return base::errno_error(EINVAL, "state directory " + path);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return base::last_errno("mkdir " + path);
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return base::last_errno("stat " + path);
  if (!S_ISDIR(st.st_mode) || st.st_uid != ::geteuid() || (st.st_mode & 077) != 0) {
    return base::errno_error(EPERM, "state directory " + path + " is not ours alone");
  }
  return path;
}

}  // namespace

std::string to_hex(const wire::Token& token) {
  std::string text;
  for (const auto byte : token) {
    const auto value = std::to_integer<unsigned>(byte);
    text.push_back(kDigits[value >> 4U]);
    text.push_back(kDigits[value & 15U]);
  }
  return text;
}

std::optional<wire::Token> token_from_hex(std::string_view text) {
  wire::Token token{};
  if (text.size() != 2 * token.size()) return std::nullopt;
  for (std::size_t i = 0; i < token.size(); ++i) {
    const auto high = kDigits.find(text[2 * i]);
    const auto low = kDigits.find(text[2 * i + 1]);
    if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
    token[i] = static_cast<std::byte>(high * 16 + low);
  }
  return token;
}

std::string format_state(const AgentState& state) {
  return "{\"version\":1,\"pid\":" + std::to_string(state.pid) + ",\"port\":" + std::to_string(state.port) +
         ",\"socket\":\"" + state.socket + "\",\"build\":\"" + state.build + "\",\"token\":\"" +
         to_hex(state.token) + "\"}\n";
}

std::optional<AgentState> parse_state(std::string_view text) {
  AgentState state;
  std::string hex;
  const bool fine =
      take(text, "{\"version\":1,\"pid\":") && take_number(text, state.pid) && take(text, ",\"port\":") &&
      take_number(text, state.port) && take(text, ",\"socket\":\"") && take_string(text, state.socket) &&
      take(text, ",\"build\":\"") && take_string(text, state.build) && take(text, ",\"token\":\"") &&
      take_string(text, hex) && take(text, "}\n") && text.empty();
  const auto token = token_from_hex(hex);
  if (!fine || !token || state.pid <= 0) return std::nullopt;
  state.token = *token;
  return state;
}

base::Result<std::string> state_directory(const std::string& wanted) {
  if (!wanted.empty()) {
    if (wanted[0] != '/') return base::errno_error(EINVAL, "state directory must be absolute");
    return claim(wanted);
  }
  // Tests and stand-ins keep an agent to themselves with it.
  const char* given = std::getenv("NEARBOX_AGENT_STATE_DIR");
  if (given != nullptr && given[0] == '/') return claim(given);
  if (::geteuid() == 0) {
    (void)::mkdir("/run", 0755);  // a root file system that has nothing at all
    if (auto directory = claim("/run/nearbox-agent")) return directory;
    return claim("/tmp/nearbox-agent-0");
  }
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && runtime[0] == '/') {
    if (auto directory = claim(std::string(runtime) + "/nearbox-agent")) return directory;
  }
  return claim("/tmp/nearbox-agent-" + std::to_string(::geteuid()));
}

StatePaths state_paths(const std::string& directory, const std::string& build, ListenKind kind,
                       const std::string& user) {
  const auto stem = directory + "/" + build + (kind == ListenKind::kTcp ? "-tcp" : "-unix") +
                    (user.empty() ? "" : "-" + user);
  return {stem + ".json", stem + ".run", stem + ".start", stem + ".log", stem + ".sock"};
}

base::Result<void> write_state(const std::string& path, const AgentState& state) {
  const auto temporary = path + ".new";
  (void)::unlink(temporary.c_str());
  base::UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return base::last_errno("open " + temporary);
  const auto text = format_state(state);
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return base::last_errno("write " + temporary);
  }
  if (::fsync(fd.get()) != 0) return base::last_errno("fsync " + temporary);
  if (const auto closed = fd.close()) return base::Error{closed, "close " + temporary};
  if (::rename(temporary.c_str(), path.c_str()) != 0) return base::last_errno("rename " + temporary);
  return {};
}

base::Result<std::optional<AgentState>> read_state(const std::string& path) {
  const base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd && errno == ENOENT) return std::optional<AgentState>{};
  if (!fd) return base::last_errno("open " + path);
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return base::last_errno("stat " + path);
  if (!S_ISREG(st.st_mode) || st.st_uid != ::geteuid() || (st.st_mode & 077) != 0) {
    return base::errno_error(EPERM, path + " is not ours alone");
  }
  std::string text(kMaxStateBytes, '\0');
  const ssize_t n = ::read(fd.get(), text.data(), text.size());
  if (n < 0) return base::last_errno("read " + path);
  auto state = parse_state(std::string_view(text).substr(0, static_cast<std::size_t>(n)));
  if (!state) return base::errno_error(EPROTO, path);
  return state;
}

base::Result<base::UniqueFd> lock_file(const std::string& path,
                                       std::chrono::steady_clock::time_point deadline) {
  base::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return base::last_errno("open " + path);
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return base::last_errno("lock " + path);
    if (std::chrono::steady_clock::now() >= deadline) return base::errno_error(EWOULDBLOCK, "lock " + path);
    (void)::poll(nullptr, 0, kLockStep);  // flock has no deadline of its own
  }
  return fd;
}

}  // namespace nearbox::agent
