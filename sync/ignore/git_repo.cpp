// SPDX-License-Identifier: Apache-2.0
#include "sync/ignore/git_repo.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <pwd.h>
#include <string_view>
#include <strings.h>
#include <sys/stat.h>
#include <utility>

#include "sync/ignore/git_child.h"

namespace nearbox::ignore {
namespace {

constexpr std::size_t kMaxGitFileBytes = 8192;  // a `.git` file or `commondir`
constexpr std::size_t kMaxConfigBytes = 4 * 1024 * 1024;

bool is_directory(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

std::string join(const std::string& base, const std::string& path) {
  return path.starts_with('/') ? path : base + "/" + path;
}

std::string trim_line_end(std::string text) {
  while (text.ends_with('\n') || text.ends_with('\r')) text.pop_back();
  return text;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

// `~/x` and `~user/x`, as git has it for paths in its configuration.
std::string expand_home(const std::string& path, const api::Environment& env) {
  if (!path.starts_with('~')) return path;
  const auto slash = std::min(path.find('/'), path.size());
  if (slash == 1) {
    const auto home = api::home_dir(env);
    return home ? *home + path.substr(slash) : path;
  }
  const auto user = path.substr(1, slash - 1);
  char buffer[4096];
  passwd entry{};
  passwd* found = nullptr;
  if (::getpwnam_r(user.c_str(), &entry, buffer, sizeof buffer, &found) != 0 || found == nullptr) return path;
  return found->pw_dir + path.substr(slash);
}

std::string default_excludes_file(const api::Environment& env) {
  const auto xdg = env("XDG_CONFIG_HOME");
  if (xdg && !xdg->empty()) return *xdg + "/git/ignore";
  const auto home = api::home_dir(env);
  return home ? *home + "/.config/git/ignore" : "/nonexistent/git/ignore";
}

bool is_true(std::string_view value) {
  const auto text = lower(value);
  return text == "true" || text == "yes" || text == "on" ||
         (!text.empty() && text != "0" && text.find_first_not_of("0123456789") == std::string::npos);
}

struct Configs {
  GitConfig own;     // all that counts in the repository
  GitConfig around;  // without what the repository itself says
};

// Reads the output of `git config -z --list --show-scope`: SCOPE, NUL, KEY, newline, VALUE, NUL; the last of
// a key counts.
Configs parse_config(std::string_view bytes, const GitConfig& defaults, const api::Environment& env) {
  Configs configs{defaults, defaults};
  const auto item = [&] {
    const auto end = std::min(bytes.find('\0'), bytes.size());
    const auto text = bytes.substr(0, end);
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
    return text;
  };
  while (!bytes.empty()) {
    const auto scope = item();
    const auto line = item();
    const auto newline = line.find('\n');
    const auto key = line.substr(0, newline);
    const auto value =
        newline == std::string_view::npos ? std::string_view("true") : line.substr(newline + 1);
    const auto set = [&](GitConfig& config) {
      if (key == "core.ignorecase") config.fold = is_true(value) ? Case::kFold : Case::kSensitive;
      if (key == "core.excludesfile" && !value.empty())
        config.excludes_file = expand_home(std::string(value), env);
    };
    set(configs.own);
    if (scope != "local" && scope != "worktree") set(configs.around);
  }
  return configs;
}

// Whether a repository's own configuration could change what its surroundings say.
bool may_differ(std::string_view text) {
  const auto words = lower(text);
  for (const auto* word : {"excludesfile", "ignorecase", "include", "worktreeconfig"}) {
    if (words.find(word) != std::string::npos) return true;
  }
  return false;
}

// extensions.objectFormat: git reads it from this file alone.
ObjectHash object_hash(std::string_view text) {
  const auto words = lower(text);
  const auto at = words.find("objectformat");
  if (at == std::string::npos) return ObjectHash::kSha1;
  return words.substr(at, words.find('\n', at) - at).find("sha256") != std::string::npos ? ObjectHash::kSha256
                                                                                         : ObjectHash::kSha1;
}

class Loader {
 public:
  Loader(Repo& repo, const api::Environment& env) : repo_(repo), env_(env) {}

  void load(const GitConfig* outer) {
    const auto own = read(OutsideFile::What::kConfig, repo_.common_dir + "/config", kMaxConfigBytes);
    load_config(own.value_or(""), outer);
    repo_.exclude = list(repo_.common_dir + "/info/exclude");
    repo_.global = list(join(repo_.top, repo_.config.excludes_file));
    load_tracked(object_hash(own.value_or("")));
  }

 private:
  std::optional<std::string> read(OutsideFile::What what, const std::string& path, std::size_t limit) {
    auto file = read_file_at(AT_FDCWD, path, limit, Symlink::kFollow);
    repo_.files.push_back({what, path, file ? file->signature : look_at(AT_FDCWD, path, Symlink::kFollow)});
    if (file) return std::move(file->bytes);
    if (file.error().as_errno() != ENOENT && file.error().as_errno() != ENOTDIR) {
      repo_.problems.push_back(file.error().message());
    }
    return std::nullopt;
  }

  PatternList list(const std::string& path) {
    const auto text = read(OutsideFile::What::kExclude, path, kMaxRuleFileBytes);
    return parse_patterns(text.value_or(""), path, repo_.base, repo_.config.fold);
  }

  void load_config(std::string_view own, const GitConfig* outer) {
    if (outer != nullptr && !may_differ(own)) {
      repo_.config = repo_.around = *outer;
      return;
    }
    repo_.config.excludes_file = repo_.around.excludes_file = default_excludes_file(env_);
    const auto deadline = std::chrono::steady_clock::now() + kGitDeadline;
    auto output = run_git({"--git-dir=" + repo_.git_dir, "config", "-z", "--list", "--show-scope"}, deadline,
                          kMaxConfigBytes);
    if (output) {
      auto configs = parse_config(*output, repo_.config, env_);
      repo_.config = std::move(configs.own);
      repo_.around = std::move(configs.around);
    } else if (output.error().as_errno() != ENOENT) {  // without git there is the default
      repo_.problems.push_back("git configuration: " + output.error().message());
    }
  }

  void load_tracked(ObjectHash hash) {
    const auto bytes = read(OutsideFile::What::kIndex, repo_.git_dir + "/index", kMaxGitIndexBytes);
    if (!bytes) return;  // none yet, or said already
    auto own = parse_git_index(*bytes, hash);
    if (own) {
      repo_.tracked = *std::move(own);
      return;
    }
    const auto deadline = std::chrono::steady_clock::now() + kGitDeadline;
    auto output = run_git({"-C", repo_.top, "--git-dir=" + repo_.git_dir, "--work-tree=" + repo_.top,
                           "ls-files", "-z", "--full-name"},
                          deadline);
    if (output) {
      repo_.tracked = parse_ls_files(*output);
    } else {
      repo_.problems.push_back("what git tracks in " + repo_.top + ": " + own.error().message() + "; " +
                               output.error().message());
    }
  }

  Repo& repo_;
  const api::Environment& env_;
};

}  // namespace

std::optional<GitDirs> find_git_dirs(const std::string& top) {
  GitDirs dirs;
  dirs.git_dir = top + "/.git";
  if (!is_directory(dirs.git_dir)) {
    const auto file = read_file_at(AT_FDCWD, dirs.git_dir, kMaxGitFileBytes, Symlink::kFollow);
    if (!file || !file->bytes.starts_with("gitdir: ")) return std::nullopt;
    dirs.git_dir = join(top, trim_line_end(file->bytes.substr(8)));
  }
  dirs.common_dir = dirs.git_dir;
  if (const auto common =
          read_file_at(AT_FDCWD, dirs.git_dir + "/commondir", kMaxGitFileBytes, Symlink::kFollow)) {
    dirs.common_dir = join(dirs.git_dir, trim_line_end(common->bytes));
  }
  // What git calls a repository; any other `.git` it walks past.
  struct stat st {};
  if (::lstat((dirs.git_dir + "/HEAD").c_str(), &st) != 0) return std::nullopt;
  if (!is_directory(dirs.common_dir + "/objects") || !is_directory(dirs.common_dir + "/refs"))
    return std::nullopt;
  return dirs;
}

std::optional<std::string> find_enclosing_top(const std::string& directory) {
  struct stat st {};
  if (::stat(directory.c_str(), &st) != 0) return std::nullopt;
  const auto device = st.st_dev;
  for (std::string at = directory; at != "/" && !at.empty();) {
    at.resize(at.rfind('/'));
    if (::stat(at.empty() ? "/" : at.c_str(), &st) != 0 || st.st_dev != device) return std::nullopt;
    if (find_git_dirs(at)) return at.empty() ? "/" : at;
  }
  return std::nullopt;
}

std::shared_ptr<const Repo> load_repo(const std::string& top, const std::string& base, const GitDirs& dirs,
                                      const api::Environment& env, const GitConfig* outer) {
  auto repo = std::make_shared<Repo>();
  repo->top = top;
  repo->base = base;
  repo->git_dir = dirs.git_dir;
  repo->common_dir = dirs.common_dir;
  Loader(*repo, env).load(outer);
  return repo;
}

std::shared_ptr<const Repo> no_repo() {
  static const auto none = std::make_shared<const Repo>();
  return none;
}

}  // namespace nearbox::ignore
