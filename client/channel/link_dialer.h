// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <random>
#include <thread>

#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/channel/agent_link_impl.h"
#include "client/channel/carrier.h"

namespace nearbox::channel {

std::uint64_t random_u64();

// Makes the connections a link asks for, control before bulk, with growing jittered pauses.
//
// Owns:    its thread, joined by stop(). Programs that dial() started on it may be made to die with
//          it (PDEATHSIG): let go of their carriers between interrupt() and stop().
// Threads: any; the callbacks run on its thread.
class LinkDialer {
 public:
  struct Callbacks {
    std::function<wire::SessionId()> session;
    std::function<void(wire::Role, std::unique_ptr<Carrier>, const wire::Welcome&)> connected;
    // True: stop trying until redial().
    std::function<bool(wire::Role, const base::Error&)> failed;
  };
  LinkDialer(const LinkConfig& config, Callbacks callbacks, base::Logger& log);
  ~LinkDialer() { stop(); }

  void start() EXCLUDES(mu_);
  // A connection is wanted. `fresh`: the one before was good, so begin without a pause.
  void need(wire::Role role, bool fresh) EXCLUDES(mu_);
  void redial() EXCLUDES(mu_);
  // Ends the attempt that runs, soon, and begins no other. Its thread lives on until stop().
  void interrupt() EXCLUDES(mu_);
  void stop() EXCLUDES(mu_);

 private:
  struct Want {
    bool needed = false;
    unsigned attempts = 0;
    std::chrono::steady_clock::time_point not_before{};
  };
  void run() noexcept EXCLUDES(mu_);
  bool next_role(wire::Role& role) EXCLUDES(mu_);
  void attempt(wire::Role role) EXCLUDES(mu_);
  base::Result<wire::Welcome> handshake(Carrier& carrier, wire::Role role, const wire::Token& token,
                                        Deadline deadline) EXCLUDES(mu_);
  void pause_locked(Want& want) REQUIRES(mu_);
  Want& want(wire::Role role) REQUIRES(mu_) { return wants_[role == wire::Role::kControl ? 0 : 1]; }

  const LinkConfig& config_;
  const Callbacks callbacks_;
  base::Logger& log_;

  base::Mutex mu_;  // rank: above the link's
  base::CondVar wake_;
  std::array<Want, 2> wants_ GUARDED_BY(mu_);
  std::minstd_rand random_ GUARDED_BY(mu_);
  Carrier* shaking_ GUARDED_BY(mu_) = nullptr;  // in its handshake: stop() shuts it down
  bool given_up_ GUARDED_BY(mu_) = false;
  std::uint64_t redials_ GUARDED_BY(mu_) = 0;
  bool stopping_ GUARDED_BY(mu_) = false;
  bool may_end_ GUARDED_BY(mu_) = false;
  std::jthread thread_;
};

}  // namespace nearbox::channel
