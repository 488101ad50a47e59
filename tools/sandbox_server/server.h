// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "client/base/log.h"
#include "client/base/result.h"

namespace nearbox::sandbox_server {

// How the embedded server is to run.
struct ServeOptions {
  std::string host = "127.0.0.1";  // an IPv4 or IPv6 address; never reachable from elsewhere by default
  std::uint16_t port = 0;          // 0: the kernel picks one
  // Holds the sandboxes; empty: nearbox/serve below $XDG_STATE_HOME, else below $HOME/.local/state.
  // (`nearbox serve` always names one: tools/daemon/local_server.h.)
  std::string data_dir;
  std::optional<std::string> key;  // the API key; empty: a new random one
  bool isolate = true;             // false: no namespaces even where they are allowed
  // The program that runs as a sandbox's init; its argument is "sandbox-init" (sandbox_init_main).
  std::string init_program = "/proc/self/exe";
};

// The embedded sandbox server: E2B's control plane and envd on one port.
//
// A sandbox is a directory and real processes of this machine, in namespaces where allowed. It is
// no security boundary, and its network is the machine's own.
//
// Owns:    the listening socket, its threads, the sandboxes with all their processes and files; paused
//          ones stay on disk for the next server.
// Threads: any; stop() is called once by one thread. Threads of its own: docs/threads.md.
// Errors:  start() fails when the port is taken, the directory is not ours or in use by another
//          server, or the init program does not start.
class SandboxServer {
 public:
  static base::Result<std::unique_ptr<SandboxServer>> start(const ServeOptions& options, base::Logger& log);
  ~SandboxServer();
  SandboxServer(const SandboxServer&) = delete;
  SandboxServer& operator=(const SandboxServer&) = delete;

  std::string api_url() const;
  std::string sandbox_url() const;
  std::string api_key() const;
  // Whether sandboxes have namespaces, and a sentence for people on what that means.
  bool isolated() const;
  std::string isolation_note() const;

  // Ends all processes of all sandboxes, stores what is to be kept (sandbox_table.h), removes the files
  // of the rest, closes the port. Idempotent.
  void stop();

 private:
  struct Impl;
  explicit SandboxServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Runs a server in the foreground: prints the line scripts rely on once it accepts (JSON:
// {"api_url","sandbox_url","api_key"}), waits for SIGTERM or SIGINT, ends everything. The
// environment variable NEARBOX_SERVE_KEY fixes the key. Call it before the first thread exists:
// it blocks these signals. Returns the exit code: 0, or 1 with the reason on stderr.
int serve_main(const ServeOptions& options, bool json, base::Logger& log);

// What a sandbox's first process runs; for programs started with "sandbox-init" as argv[1].
// Descriptors: 3 the control socket, 4 the socket envd listens on. Not for people.
int sandbox_init_main(int argc, char** argv);

}  // namespace nearbox::sandbox_server
