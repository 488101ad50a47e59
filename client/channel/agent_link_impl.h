// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "client/base/timers.h"
#include "client/channel/carrier.h"

namespace nearbox::channel {

// A way to the agent, and the token it wants to see.
struct Dialled {
  std::unique_ptr<Carrier> carrier;
  wire::Token token{};
};

struct LinkConfig {
  // Makes a carrier to the agent; called on the dialer thread, again after each loss and failure (also
  // when the agent refused the token: then it may fetch a new one). Keeps to its deadline.
  std::function<base::Result<Dialled>(wire::Role role, Deadline deadline)> dial;
  // Makes a dial() that is running return early; called while the link is destroyed. Optional.
  std::function<void()> abort_dial;
  // True: no further attempt can succeed (the sandbox is gone). All calls then end with the error's
  // errno until redial(). Asked about errors of dial() and refusals, while no connection is up.
  std::function<bool(const base::Error&)> is_final;

  bool second_connection = true;                      // a connection of its own for Lane::kBulk
  std::chrono::milliseconds connect_timeout{10'000};  // dial and handshake
  std::chrono::milliseconds ping_after{2'000};
  std::chrono::milliseconds dead_after{8'000};
  // A cancelled call whose end the agent still owes after so long: the connection is given up.
  std::chrono::milliseconds end_after_cancel{30'000};
  std::chrono::milliseconds backoff_min{100};  // doubled up to backoff_max, then jittered down by half
  std::chrono::milliseconds backoff_max{5'000};
  std::string build = "nearbox";  // told to the agent, for its logs
};

// An AgentLink with what its owner alone uses.
class Link : public api::AgentLink {
 public:
  // Tries again at once: after a final error, or when something (a resume, a new network) makes it
  // likely that the next attempt succeeds.
  virtual void redial() = 0;
  // Tells the agent that the session is over (waiting for it 300 ms at most), ends every call with
  // ESHUTDOWN, now and from now on, and joins all threads; what the destructor does first. Not on a
  // thread of the link. Again: nothing.
  virtual void shutdown() = 0;
};

// Starts dialling at once.
//
// Owns:    a dialer thread, an event thread, and a reader and a writer thread for each connection.
//          `timers` and `log` outlive it.
// Threads: as AgentLink. The destructor ends every call with ESHUTDOWN, joins all threads, and must
//          not run on a thread of the link. It takes as long as a running dial() that abort_dial does
//          not end, at most connect_timeout.
std::unique_ptr<Link> make_agent_link(LinkConfig config, base::Timers& timers, base::Logger& log);

}  // namespace nearbox::channel
