// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "client/base/log.h"
#include "client/base/result.h"
#include "client/channel/agent_link_impl.h"
#include "client/channel/carrier.h"

namespace nearbox::daemon {

// Makes connections to the agent of one sandbox: puts the agent there, starts it, connects.
//
// Threads: dial() on the link's dialer thread, one at a time; the rest from any.
class Dialer {
 public:
  virtual ~Dialer() = default;
  virtual base::Result<channel::Dialled> dial(wire::Role role, channel::Deadline deadline) = 0;
  // The sandbox is gone or may not be used: dialling again is of no use.
  virtual bool is_final(const base::Error& error) const = 0;
  virtual std::string describe() const = 0;  // for messages: "ssh:host"
  virtual void wanted() {}   // a user waits for the next attempt: a paused sandbox may be woken for it
  virtual void refused() {}  // the agent did not take the token: fetch another one
  virtual void abort() {}    // a dial() that is running comes back early
};

struct AgentBinary {
  std::string path;
  std::string build;  // content hash, as the agent itself says it
};
// NEARBOX_AGENT, else beside this program, else ../libexec/nearbox/nearbox-agent.
base::Result<AgentBinary> find_agent_binary();

// `prefix` is what runs a shell command in the sandbox with our stdio: {"ssh", …, HOST} or
// {"docker", "exec", "-i", NAME}; `shell_words`: the command follows as one word for a remote shell
// (ssh) or as sh -c ARG (docker).
struct StdioConfig {
  std::vector<std::string> prefix;
  bool remote_shell = false;
  std::string name;
};
StdioConfig ssh_config(const std::string& host);          // NEARBOX_SSH replaces the command "ssh"
StdioConfig docker_config(const std::string& container);  // NEARBOX_DOCKER replaces "docker"
std::unique_ptr<Dialer> make_stdio_dialer(StdioConfig config, AgentBinary agent, base::Logger& log);

}  // namespace nearbox::daemon
