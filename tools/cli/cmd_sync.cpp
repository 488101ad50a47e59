// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <poll.h>
#include <string>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include <climits>

#include "client/api/error_code.h"
#include "tools/cli/app.h"
#include "tools/cli/connect.h"
#include "tools/cli/sync_words.h"
#include "tools/daemon/control_errors.h"

namespace nearbox::cli {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr const char* kDefaultRemote = "workspace";  // below the sandbox user's home

struct SyncArgs {
  std::vector<std::string> words;
  std::string sandbox;
  std::vector<std::string> include;
  std::vector<std::string> exclude;
  bool no_gitignore = false;
  bool include_secrets = false;
  std::string deletes = "tracked";
  std::string conflicts = "keep-both";
  std::string symlinks = "preserve";
  bool content = false;
  bool dry_run = false;
  std::uint64_t max_file_bytes = 0;
  int timeout_s = 60;
};

struct Ends {
  std::string local;   // absolute, without symlinks
  std::string target;  // SANDBOX
  std::string remote;
};

bool is_directory(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

bool is_path(const std::string& word) {
  return word.starts_with("/") || word.starts_with("~") || word.starts_with("./") || word == "." ||
         word == "..";
}

base::Error missing_sandbox() {
  return api::make_error(api::ErrorCode::kArgMissing,
                         "SANDBOX is required: nearbox sync [DIR] SANDBOX[:REMOTE], or --sandbox SANDBOX");
}

base::Result<std::string> resolve_local(const std::string& path) {
  char buffer[PATH_MAX];
  if (::realpath(path.c_str(), buffer) == nullptr) {
    return api::fill_error(api::ErrorCode::kLocalNotFound, {{"PATH", path}});
  }
  if (!is_directory(buffer)) return api::fill_error(api::ErrorCode::kLocalNotDirectory, {{"PATH", path}});
  return std::string(buffer);
}

// [DIR] SANDBOX[:REMOTE], or with --sandbox [DIR] [REMOTE].
base::Result<Ends> find_ends(const App& app, const SyncArgs& args) {
  Ends ends;
  std::string local = ".";
  auto words = args.words;
  std::string place;
  if (!args.sandbox.empty()) {
    if (!words.empty()) local = words.front();
    if (words.size() > 1) ends.remote = words[1];
    place = args.sandbox;
  } else if (words.size() == 2) {
    local = words[0];
    place = words[1];
  } else if (words.size() == 1 && !is_path(words[0])) {
    place = words[0];
  }
  if (place.empty() || is_path(place)) return missing_sandbox();
  auto resolved = resolve_local(local);
  if (!resolved) return std::move(resolved).error();
  ends.local = *std::move(resolved);
  auto target = daemon::parse_target(place, app.local);
  if (!target) return std::move(target).error();
  if (ends.remote.empty()) ends.remote = target->dir;
  if (ends.remote.empty()) ends.remote = kDefaultRemote;
  ends.target = place;
  return ends;
}

// {"status":"failed", …} with --json, else as every other command.
int fail_sync(const App& app, const base::Error& error) {
  if (!app.json) return fail(app, error);
  print_json({{"status", "failed"},
              {"error", api::error_text(error)},
              {"errorCode", std::string(api::code_string(error))},
              {"retryable", api::is_retryable(error)}});
  return api::exit_code(error);
}

// The line that shows how far it is, on a terminal.
class Bar {
 public:
  explicit Bar(bool wanted) : wanted_(wanted && ::isatty(2) == 1) {}
  ~Bar() { clear(); }
  Bar(const Bar&) = delete;
  Bar& operator=(const Bar&) = delete;
  void show(const nlohmann::json& progress) {
    if (!wanted_) return;
    winsize size{};
    const bool known = ::ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    std::fprintf(stderr, "\r\033[K%s", sync_bar(progress, known ? size.ws_col : 80).c_str());
    shown_ = true;
  }
  void clear() {
    if (std::exchange(shown_, false)) std::fprintf(stderr, "\r\033[K");
  }

 private:
  bool wanted_;
  bool shown_ = false;
};

int exit_of(const nlohmann::json& result) {
  const auto code = result.value("errorCode", std::string());
  for (const auto& row : api::error_table()) {
    if (row.name == code) return row.exit;
  }
  return 0;
}

int finish(App& app, const nlohmann::json& result) {
  if (app.json) {
    print_json(result);
  } else {
    std::printf("%s", sync_words(result).c_str());
    if (const auto found = result.find("error"); found != result.end() && found->is_string()) {
      std::fprintf(stderr, "nearbox: %s\n", printable(found->get<std::string>()).c_str());
    }
  }
  return exit_of(result);
}

int follow(App& app, daemon::ControlConnection& connection) {
  Bar bar(!app.json);
  while (true) {
    pollfd ready{connection.fd(), POLLIN, 0};
    if (::poll(&ready, 1, 60'000) <= 0) continue;  // a large tree is scanned: the daemon tells its end
    auto message = connection.read_json(Clock::now() + 60s);
    if (!message) {
      bar.clear();
      return fail_sync(
          app, base::errno_error(message.error().as_errno(),
                                 "the daemon went away while it synchronised; run the command again"));
    }
    if (const auto progress = message->find("progress"); progress != message->end()) {
      bar.show(*progress);
      if (app.json) print_json({{"progress", *progress}});
    } else if (const auto error = message->find("error"); error != message->end()) {
      bar.clear();
      return fail_sync(app, daemon::error_from(*error));
    } else if (const auto result = message->find("ok"); result != message->end()) {
      bar.clear();
      return finish(app, *result);
    }
  }
}

int run_sync(App& app, const SyncArgs& args) {
  auto ends = find_ends(app, args);
  if (!ends) return fail_sync(app, ends.error());
  const auto deadline = Clock::now() + std::chrono::seconds(args.timeout_s);
  const nlohmann::json message = {{"op", "sync"},
                                  {"local", ends->local},
                                  {"remote", ends->remote},
                                  {"include", args.include},
                                  {"exclude", args.exclude},
                                  {"gitignore", !args.no_gitignore},
                                  {"include_secrets", args.include_secrets},
                                  {"delete", args.deletes},
                                  {"conflicts", args.conflicts},
                                  {"symlinks", args.symlinks},
                                  {"content", args.content},
                                  {"dry_run", args.dry_run},
                                  {"max_file_bytes", args.max_file_bytes},
                                  {"timeout_ms", milliseconds_left(deadline)}};
  std::string text;
  try {
    text = message.dump();
  } catch (const nlohmann::json::exception&) {
    return fail_sync(app, api::make_error(api::ErrorCode::kArgInvalid,
                                          "DIR is not valid: the two directories' names must be UTF-8"));
  }
  auto opened = open_daemon(app, ends->target, deadline);
  if (!opened) return fail_sync(app, opened.error());
  if (auto sent = opened->connection->write(daemon::ControlType::kJson, text, deadline); !sent) {
    return fail_sync(app, sent.error());
  }
  return follow(app, *opened->connection);
}

}  // namespace

void add_sync(CLI::App& parser, App& app) {
  auto args = std::make_shared<SyncArgs>();
  auto* sync = parser.add_subcommand("sync", "Make a directory in the sandbox current");
  sync->add_option("words", args->words, "[DIR] SANDBOX[:REMOTE]; with --sandbox: [DIR] [REMOTE]")
      ->expected(0, 2);
  sync->add_option("--sandbox", args->sandbox, "The sandbox");
  sync->add_option("--include", args->include, "Pattern that wins over every other rule; may be repeated")
      ->allow_extra_args(false);
  sync->add_option("--exclude", args->exclude, "Pattern to leave out; may be repeated")
      ->allow_extra_args(false);
  sync->add_flag("--no-gitignore", args->no_gitignore, "As if git had no rules");
  sync->add_flag("--include-secrets", args->include_secrets, "Also send what is on the secret list");
  sync->add_option("--delete", args->deletes,
                   "What is removed in the sandbox: none, tracked (placed by a sync), mirror")
      ->check(CLI::IsMember({"none", "tracked", "mirror"}));
  sync->add_option("--conflicts", args->conflicts, "keep-both, prefer-local, prefer-remote or fail")
      ->check(CLI::IsMember({"keep-both", "prefer-local", "prefer-remote", "fail"}));
  sync->add_option("--symlinks", args->symlinks, "preserve or skip")
      ->check(CLI::IsMember({"preserve", "skip"}));
  sync->add_flag("--content", args->content, "Compare by content, not by size and times");
  sync->add_option("--max-file-size", args->max_file_bytes, "Leave larger files out (100MB, 1GiB; 0: none)")
      ->transform(CLI::AsSizeValue(false));
  sync->add_flag("-n,--dry-run", args->dry_run, "Say what would be done");
  sync->add_option("--connect-timeout", args->timeout_s, "Seconds to wait for the sandbox")
      ->check(CLI::Range(1, 3600));
  sync->callback([&app, args] { app.run = [&app, args] { return run_sync(app, *args); }; });
}

}  // namespace nearbox::cli
