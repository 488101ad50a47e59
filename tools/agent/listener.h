// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "client/base/log.h"
#include "client/base/mutex.h"
#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/channel/carrier.h"
#include "tools/agent/agent.h"

namespace nearbox::agent {

inline constexpr std::size_t kMaxConnections = 256;
inline constexpr std::size_t kMaxStrangers = 64;          // connections that have not shown the token yet
inline constexpr std::chrono::seconds kAcceptTimeout{5};  // until the token was shown

// Makes a carrier of an accepted socket (a WebSocket upgrade on TCP).
using CarrierMaker =
    std::function<base::Result<std::unique_ptr<channel::Carrier>>(base::UniqueFd, channel::Deadline)>;

// Accepts connections and serves each on a thread of its own.
//
// Owns:    the listening socket (and the name of a unix one), the threads; joined by the destructor,
//          which breaks the connections.
// Bounds:  kMaxConnections; others are closed at once. Of them kMaxStrangers before their hello: the
//          oldest of these makes room, so that silent ones keep nobody out.
class Listener {
 public:
  // All IPv4 addresses; port 0 picks a free one.
  static base::Result<std::unique_ptr<Listener>> tcp(std::uint16_t port, base::Logger& log);
  // A socket in a directory that only this user may enter; one left over by a dead agent goes.
  // Peers of other users are turned away. EINVAL: the path is too long.
  static base::Result<std::unique_ptr<Listener>> local(const std::string& path, base::Logger& log);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  std::uint16_t port() const { return port_; }
  // Once. `agent` outlives this object.
  base::Result<void> start(Agent& agent, CarrierMaker make);
  void stop();

 private:
  struct Connection {
    base::UniqueFd wake;  // a duplicate of the socket, to break it with
    std::jthread thread;
    bool broken = false;  // to make room; under mu_
    std::atomic<bool> known{false};
    std::atomic<bool> finished{false};
  };
  Listener(base::UniqueFd socket, std::string path, base::Logger& log)
      : socket_(std::move(socket)), path_(std::move(path)), log_(log) {}
  void run() noexcept;
  void accept_one();
  void break_oldest_stranger() REQUIRES(mu_);
  void serve(Connection& connection, base::UniqueFd socket) noexcept;
  bool peer_allowed(int socket) const;

  base::UniqueFd socket_;
  const std::string path_;  // of a unix socket
  base::Logger& log_;
  std::uint16_t port_ = 0;
  base::UniqueFd wake_;  // eventfd, raised by stop()
  std::atomic<bool> stopping_{false};
  Agent* agent_ = nullptr;
  CarrierMaker make_;
  base::Mutex mu_;  // rank: leaf
  std::list<Connection> connections_ GUARDED_BY(mu_);
  std::jthread thread_;
};

}  // namespace nearbox::agent
