// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string_view>
#include <unistd.h>

#include "tools/agent/id_map.h"
#include "tools/agent/proc_spawn.h"

namespace nearbox::agent {
namespace {

constexpr std::uint32_t kKnownFlags =
    wire::kProcStdin | wire::kProcPty | wire::kProcBackground | wire::kProcNoLogin;

// Profiles may set what the request sets too (Debian's /etc/profile sets PATH), and the request
// wins: its variables come as the first arguments, up to "--". A name that no shell variable can
// have is left to the environment the shell was started with.
constexpr const char* kLoginScript =
    "while [ \"$1\" != -- ]; do export \"$1\"; shift; done; shift; exec \"$@\"";
// For a program whose name looks like an option of exec; older shells do not know its "--".
constexpr const char* kLoginScriptDash =
    "while [ \"$1\" != -- ]; do export \"$1\"; shift; done; shift; exec -- \"$@\"";

bool has_nul(const std::string& text) { return text.find('\0') != std::string::npos; }

bool shell_name(std::string_view name) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  if (name.empty() || !letter(name.front())) return false;
  return std::all_of(name.begin(), name.end(), [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

base::Result<void> check(const wire::ProcStart& request) {
  if (request.argv.empty() || request.argv.front().empty()) {
    return base::errno_error(EINVAL, "no program to run");
  }
  if ((request.flags & ~kKnownFlags) != 0) return base::errno_error(EINVAL, "unknown process flags");
  const auto bad_env = [](const std::string& e) {
    return has_nul(e) || e.find('=') == 0 || e.find('=') == std::string::npos;
  };
  if (std::any_of(request.argv.begin(), request.argv.end(), has_nul) || has_nul(request.cwd)) {
    return base::errno_error(EINVAL, "a NUL byte in an argument or the directory");
  }
  if (std::any_of(request.env.begin(), request.env.end(), bad_env)) {
    return base::errno_error(EINVAL, "an environment entry is not NAME=VALUE");
  }
  return {};
}

const char* login_shell() {
  for (const char* shell : {"/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/sh", "/usr/bin/sh"}) {
    if (::access(shell, X_OK) == 0) return shell;
  }
  return nullptr;
}

std::vector<std::string> candidates(const std::string& program, std::string_view path) {
  if (program.find('/') != std::string::npos) return {program};
  std::vector<std::string> all;
  if (path.empty()) path = kDefaultPath;
  while (true) {
    const auto colon = path.find(':');
    const auto directory = path.substr(0, colon);
    all.push_back(directory.empty() ? "./" + program : std::string(directory) + "/" + program);
    if (colon == std::string_view::npos) return all;
    path.remove_prefix(colon + 1);
  }
}

std::string absolute_cwd(const std::string& cwd, const std::string& home) {
  if (cwd.empty() || cwd == "~") return home;
  if (cwd.front() == '/') return cwd;
  return home + "/" + (cwd.starts_with("~/") ? cwd.substr(2) : cwd);
}

void use_login_shell(const wire::ProcStart& request, const char* shell, SpawnSpec& spec) {
  const std::string_view path(shell);
  spec.programs = {shell};
  const bool dash = request.argv.front().front() == '-';
  spec.argv = {std::string(path.substr(path.rfind('/') + 1)), "-l", "-c",
               dash ? kLoginScriptDash : kLoginScript, "nearbox"};
  for (const auto& entry : request.env) {
    if (shell_name(std::string_view(entry).substr(0, entry.find('=')))) spec.argv.push_back(entry);
  }
  spec.argv.emplace_back("--");
  spec.argv.insert(spec.argv.end(), request.argv.begin(), request.argv.end());
}

}  // namespace

base::Result<SpawnSpec> make_spec(const wire::ProcStart& request, const std::string& sandbox_user) {
  if (auto checked = check(request); !checked) return std::move(checked).error();
  auto account = find_account(request.user.empty() ? sandbox_user : request.user);
  if (!account) return std::move(account).error();
  SpawnSpec spec;
  spec.account = std::move(*account);
  spec.switch_user = geteuid() == 0 && other_users_exist();
  spec.env = login_environment(spec.account);
  const bool pty = (request.flags & wire::kProcPty) != 0;
  if (pty) set_variable(spec.env, "TERM=xterm-256color");
  for (const auto& entry : request.env) set_variable(spec.env, entry);
  spec.cwd = absolute_cwd(request.cwd, spec.account.home);
  spec.cwd_optional = request.cwd.empty();
  spec.input = pty                                       ? SpawnInput::kPty
               : (request.flags & wire::kProcStdin) != 0 ? SpawnInput::kPipe
                                                         : SpawnInput::kNull;
  spec.rows = request.rows;
  spec.cols = request.cols;
  const char* shell = (request.flags & wire::kProcNoLogin) != 0 ? nullptr : login_shell();
  if (shell != nullptr) {
    use_login_shell(request, shell, spec);
  } else {
    spec.programs = candidates(request.argv.front(), variable(spec.env, "PATH"));
    spec.argv = request.argv;
  }
  return spec;
}

}  // namespace nearbox::agent
