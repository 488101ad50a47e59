// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

namespace nearbox::channel {

// Which nonces a session's agent may show after a reconnect (docs/protocol.md, "Rollback rule"):
// the newest one that it is known to have received, and those sent after it.
//
// Threads: none of its own; its owner holds a lock.
// Bounds:  kMaxUnproven; older ones are forgotten, which can only make a resumed agent look new.
class NonceHistory {
 public:
  // A session begins, with the nonce its agent showed (0: none yet).
  void reset(std::uint64_t nonce) { sent_.assign(1, Sent{nonce, nullptr, 0}); }
  // `ping`: the newest ping queued on `connection` before it.
  void sent(std::uint64_t nonce, const void* connection, std::uint64_t ping) {
    sent_.push_back(Sent{nonce, connection, ping});
    if (sent_.size() > kMaxUnproven) sent_.pop_front();
  }
  // A pong proves that the agent received what was queued before its ping.
  void pong(const void* connection, std::uint64_t ping) {
    for (auto it = sent_.rbegin(); it != sent_.rend(); ++it) {
      if (it->connection != connection || it->ping >= ping) continue;
      sent_.erase(sent_.begin(), std::prev(it.base()));
      return;
    }
  }
  bool accepts(std::uint64_t nonce) const {
    return std::any_of(sent_.begin(), sent_.end(), [&](const Sent& s) { return s.nonce == nonce; });
  }
  // A nonce above all that were made before, so that the agent can tell an older one that came late;
  // its low bits are random.
  std::uint64_t make(std::uint64_t random) { return ++made_ << kRandomBits | random >> (64 - kRandomBits); }
  static constexpr std::size_t kMaxUnproven = 64;
  static constexpr unsigned kRandomBits = 24;  // the rest counts: 2^40 confirms

 private:
  struct Sent {
    std::uint64_t nonce;
    const void* connection;  // names it only
    std::uint64_t ping;
  };
  std::deque<Sent> sent_{Sent{0, nullptr, 0}};
  std::uint64_t made_ = 0;  // never starts again: a session may go on at an agent that knows older ones
};

}  // namespace nearbox::channel
