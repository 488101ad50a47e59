// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <sys/stat.h>
#include <vector>

#include <climits>

#include "client/api/error_code.h"
#include "sync/ignore/git_repo.h"
#include "sync/ignore/rule_tree.h"
#include "tools/cli/app.h"

namespace nearbox::cli {
namespace {

struct WhyArgs {
  std::vector<std::string> paths;
  std::string root;
  ignore::RuleOptions rules;
};

struct Place {
  std::string root;  // without symlinks
  std::string path;  // below it; "" is the root
  bool directory = false;
};

std::optional<std::string> resolved(const std::string& path) {
  char buffer[PATH_MAX];
  if (::realpath(path.empty() ? "/" : path.c_str(), buffer) == nullptr) return std::nullopt;
  return std::string(buffer);
}

bool exists(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0;
}

// Where a sync would begin if nobody says: at nearbox.toml, else at the work tree's top, else here.
std::string find_root(const std::string& directory) {
  for (std::string at = directory;; at.resize(at.rfind('/'))) {
    if (exists(at + "/nearbox.toml") || ignore::find_git_dirs(at.empty() ? "/" : at))
      return at.empty() ? "/" : at;
    if (at.find('/') == std::string::npos) break;
  }
  const auto here = resolved(".");
  if (here && (directory == *here || directory.starts_with(*here + "/"))) return *here;
  return directory.empty() ? "/" : directory;
}

// The path as it stands, with the symlinks of the directories above it resolved; it need not be there.
base::Result<std::string> absolute(std::string path) {
  if (path.empty())
    return api::fill_error(api::ErrorCode::kArgInvalid, {{"NAME", "PATH"}, {"WHY", "it is empty"}});
  const bool dots = path == "." || path == ".." || path.ends_with("/.") || path.ends_with("/..");
  if (dots) {
    if (auto whole = resolved(path)) return *whole;
  }
  std::string rest;
  while (true) {
    while (path.size() > 1 && path.ends_with('/')) path.pop_back();
    const auto slash = path.rfind('/');
    const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
    path = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    if (name == ".." || name == ".") {
      return api::fill_error(api::ErrorCode::kLocalNotFound, {{"PATH", path}});
    }
    rest = name.empty() ? rest : "/" + name + rest;
    if (const auto above = resolved(path)) return (*above == "/" ? "" : *above) + rest;
    if (path == "." || path == "/") return api::fill_error(api::ErrorCode::kLocalNotFound, {{"PATH", path}});
  }
}

base::Result<Place> locate(const WhyArgs& args, const std::string& path) {
  auto whole = absolute(path);
  if (!whole) return std::move(whole).error();
  Place place;
  struct stat st {};
  const bool there = ::lstat(whole->c_str(), &st) == 0;
  place.directory = there ? S_ISDIR(st.st_mode) : path.ends_with('/');
  if (args.root.empty()) {
    place.root = find_root(place.directory && there ? *whole : whole->substr(0, whole->rfind('/')));
  } else {
    const auto root = resolved(args.root);
    if (!root) return api::fill_error(api::ErrorCode::kLocalNotFound, {{"PATH", args.root}});
    place.root = *root;
  }
  if (*whole == place.root) return place;
  const std::string prefix = place.root == "/" ? "/" : place.root + "/";
  if (!whole->starts_with(prefix))
    return api::fill_error(api::ErrorCode::kLocalOutsideRoot, {{"PATH", path}});
  place.path = whole->substr(prefix.size());
  return place;
}

nlohmann::json to_json(const Place& place, const ignore::Answer& answer) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::json() : nlohmann::json(text);
  };
  nlohmann::json out = {{"path", place.path},
                        {"root", place.root},
                        {"directory", place.directory},
                        {"placement", ignore::name_of(answer.placement)},
                        {"rule", ignore::name_of(answer.kind)},
                        {"file", or_null(answer.file)},
                        {"line", answer.line == 0 ? nlohmann::json() : nlohmann::json(answer.line)},
                        {"pattern", or_null(answer.pattern)},
                        {"matched", or_null(answer.matched)},
                        {"reason", nlohmann::json()},
                        {"text", answer.text}};
  if (answer.placement != ignore::Placement::kSynced) out["reason"] = ignore::skip_reason(answer.kind);
  return out;
}

int run_why(App& app, const WhyArgs& args) {
  std::unique_ptr<ignore::RuleTree> tree;
  std::string root;
  for (const auto& path : args.paths) {
    auto place = locate(args, path);
    if (!place) return fail(app, place.error());
    if (!tree || root != place->root) {
      auto opened = ignore::RuleTree::open(place->root, args.rules);
      if (!opened) return fail(app, opened.error());
      tree = *std::move(opened);
      root = place->root;
      for (const auto& problem : tree->rules()->problems()) {
        std::fprintf(stderr, "nearbox: %s\n", printable(problem).c_str());
      }
    }
    const auto answer = tree->answer(place->path, place->directory);
    if (app.json) {
      print_json(to_json(*place, answer));
    } else {
      std::printf("%s: %s, %s\n", printable(path).c_str(),
                  std::string(ignore::name_of(answer.placement)).c_str(), printable(answer.text).c_str());
    }
  }
  return 0;
}

}  // namespace

void add_why(CLI::App& parser, App& app) {
  auto args = std::make_shared<WhyArgs>();
  auto no_gitignore = std::make_shared<bool>(false);
  auto* why =
      parser.add_subcommand("why", "Where a path of a synced directory lives, and which rule decided");
  why->add_option("path", args->paths,
                  "Paths on this machine, there or not; a slash at the end means a directory")
      ->required();
  why->add_option("--root", args->root,
                  "The synced directory (default: where nearbox.toml or .git is, above PATH)");
  why->add_option("--include", args->rules.include, "Pattern that wins over every other rule")
      ->allow_extra_args(false);
  why->add_option("--exclude", args->rules.exclude, "Pattern to leave out")->allow_extra_args(false);
  why->add_flag("--no-gitignore", *no_gitignore, "As if git had no rules");
  why->add_flag("--include-secrets", args->rules.secrets, "As if there were no secret list");
  why->callback([&app, args, no_gitignore] {
    args->rules.gitignore = !*no_gitignore;
    app.run = [&app, args] { return run_why(app, *args); };
  });
}

}  // namespace nearbox::cli
