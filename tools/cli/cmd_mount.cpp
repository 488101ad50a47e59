// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

#include <climits>

#include "client/api/error_code.h"
#include "tools/cli/app.h"
#include "tools/cli/connect.h"
#include "tools/daemon/mounts.h"

namespace nearbox::cli {
namespace {

using namespace std::chrono_literals;

struct MountArgs {
  std::string target;
  std::string mountpoint;
  std::string symlinks = "contain";
  std::string owner = "map";
  bool noexec = false;
  bool allow_other = false;
  bool read_only = false;
  bool nonempty = false;
  int timeout_s = 120;
};

// The absolute path of what will be covered: its parent's symlinks followed, itself as it is.
base::Result<std::string> absolute(const std::string& path) {
  char real[PATH_MAX];
  if (::realpath(path.c_str(), real) != nullptr) return std::string(real);
  if (errno == ENOTCONN || errno == EIO) {  // a dead mount: its parent is fine
    const auto slash = path.find_last_of('/', path.size() - 1 - (path.ends_with('/') ? 1 : 0));
    const auto parent = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    if (::realpath(parent.c_str(), real) != nullptr) {
      auto name = slash == std::string::npos ? path : path.substr(slash + 1);
      while (name.ends_with('/')) name.pop_back();
      return std::string(real) + "/" + name;
    }
  }
  if (errno == ENOENT) {
    return api::make_error(api::ErrorCode::kLocalNotFound,
                           "Local path not found: " + path + "; make the directory first (mkdir -p)");
  }
  return base::last_errno("mountpoint " + path);
}

int run_mount(App& app, const MountArgs& args) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(args.timeout_s);
  if (args.owner == "numeric" && ::geteuid() != 0) {
    return fail(app,
                api::make_error(api::ErrorCode::kArgInvalid,
                                "--owner is not valid: numeric shows the sandbox's users as users of this "
                                "machine and is for root alone; leave it out"));
  }
  auto mountpoint = absolute(args.mountpoint);
  if (!mountpoint) return fail(app, mountpoint.error());
  auto opened = open_daemon(app, args.target, deadline);
  if (!opened) return fail(app, opened.error());
  const nlohmann::json message = {{"op", "mount"},
                                  {"dir", opened->target.dir},
                                  {"mountpoint", *mountpoint},
                                  {"symlinks", args.symlinks},
                                  {"owner", args.owner},
                                  {"noexec", args.noexec},
                                  {"allow_other", args.allow_other},
                                  {"read_only", args.read_only},
                                  {"nonempty", args.nonempty},
                                  {"timeout_ms", milliseconds_left(deadline)}};
  auto answer = daemon::request(*opened->connection, message, deadline + 5s);
  if (!answer) return fail(app, answer.error());
  if (app.json) {
    print_json(*answer);
  } else {
    std::printf("%s is mounted at %s\n", printable(answer->value("source", "")).c_str(),
                printable(*mountpoint).c_str());
  }
  return 0;
}

struct UnmountArgs {
  std::string mountpoint;
  int timeout_s = 60;
};

int run_unmount(App& app, const UnmountArgs& args) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(args.timeout_s);
  auto mountpoint = absolute(args.mountpoint);
  if (!mountpoint) return fail(app, mountpoint.error());
  auto done = daemon::unmount_anywhere(*mountpoint, deadline);
  if (!done) return fail(app, done.error());
  if (app.json) print_json({{"status", "unmounted"}, {"mountpoint", *mountpoint}});
  return 0;
}

}  // namespace

void add_mount(CLI::App& parser, App& app) {
  auto args = std::make_shared<MountArgs>();
  auto* mount = parser.add_subcommand("mount", "Show a sandbox's directory as a local folder");
  mount->add_option("target", args->target, "SANDBOX[:DIR]: ID, local:NAME, ssh:HOST or docker:CONTAINER")
      ->required();
  mount->add_option("mountpoint", args->mountpoint, "An empty local directory")->required();
  mount->add_option("--symlinks", args->symlinks, "Links that lead outside: contain (refuse), raw, rebase")
      ->check(CLI::IsMember({"contain", "raw", "rebase"}));
  mount
      ->add_option("--owner", args->owner,
                   "map: all files are yours; numeric: the sandbox's numbers (root only)")
      ->check(CLI::IsMember({"map", "numeric"}));
  mount->add_flag("--noexec", args->noexec, "No programs are run from the mount");
  mount->add_flag("--allow-other", args->allow_other, "Other users may look in too");
  mount->add_flag("--read-only", args->read_only, "No writes");
  mount->add_flag("--nonempty", args->nonempty, "The mountpoint may hold files, which the mount hides");
  mount->add_option("--timeout", args->timeout_s, "Seconds to wait until it is usable")
      ->check(CLI::Range(1, 3600));
  mount->callback([&app, args] { app.run = [&app, args] { return run_mount(app, *args); }; });

  auto off = std::make_shared<UnmountArgs>();
  auto* unmount = parser.add_subcommand("unmount", "Take a mount away");
  unmount->alias("umount");
  unmount->add_option("mountpoint", off->mountpoint, "Where it is mounted")->required();
  unmount->add_option("--timeout", off->timeout_s, "Seconds to wait")->check(CLI::Range(1, 3600));
  unmount->callback([&app, off] { app.run = [&app, off] { return run_unmount(app, *off); }; });
}

}  // namespace nearbox::cli
