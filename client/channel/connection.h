// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "client/base/mutex.h"
#include "client/channel/carrier.h"
#include "client/channel/frame.h"
#include "client/channel/frame_queue.h"

namespace nearbox::channel {

class Connection;

// What a client's connection tells its owner, on its reader thread, with no lock held.
class ConnectionOwner {
 public:
  virtual ~ConnectionOwner() = default;
  // An error closes the connection.
  virtual base::Result<void> on_chunk(Connection& connection, std::uint32_t id, wire::ByteView bytes) = 0;
  virtual base::Result<void> on_end(Connection& connection, std::uint32_t id, int error,
                                    wire::ByteView payload) = 0;
  // All notes sent before ping number `ping` were taken by the agent's reader.
  virtual void on_pong(Connection& connection, std::uint64_t ping) = 0;
  // Once, last.
  virtual void on_lost(Connection& connection, base::Error why) = 0;
};

struct ConnectionOptions {
  std::chrono::milliseconds ping_after{2000};
  std::chrono::milliseconds dead_after{8000};
};

// The client's end of one connection after the handshake: a reader and a writer thread.
//
// Owns:    its carrier, the frames queued, both threads (joined by join()).
// Threads: any; the owner's lock may be held while the send methods are called.
// Errors:  reported once, by on_lost(); what is sent afterwards is dropped.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::unique_ptr<Carrier> carrier, wire::Role role, ConnectionOwner& owner,
             const ConnectionOptions& options);
  ~Connection();

  void start();
  void close(base::Error why) EXCLUDES(mu_);  // ends both threads soon
  void join();                                // not from its own threads

  void send_call(std::uint32_t id, wire::Method method, const wire::CallHead& head, wire::ByteView payload)
      EXCLUDES(mu_);
  // True: nothing of the call had been sent and it is gone; no end will come.
  bool send_cancel(std::uint32_t id) EXCLUDES(mu_);
  void send_credit(std::uint32_t id, std::uint32_t bytes) EXCLUDES(mu_);
  // The number of the newest ping queued before the note: a pong with a greater one proves that it
  // was received.
  std::uint64_t send_note(wire::Method method, wire::Bytes payload, std::uint32_t lane) EXCLUDES(mu_);

  // Sends a note and waits until the agent took it. False: not by the deadline, or the connection is
  // closed. Not from its own threads.
  bool deliver_note(wire::Method method, wire::Bytes payload, Deadline deadline) EXCLUDES(mu_);

  wire::Role role() const { return role_; }
  std::size_t queued_bytes() const EXCLUDES(mu_);
  std::uint64_t bytes_in() const { return bytes_in_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_out() const { return bytes_out_.load(std::memory_order_relaxed); }
  std::chrono::microseconds rtt() const {
    return std::chrono::microseconds(rtt_us_.load(std::memory_order_relaxed));
  }
  double bytes_per_second() const { return rate_.load(std::memory_order_relaxed); }
  std::chrono::steady_clock::time_point started() const { return started_; }

 private:
  void read_loop() noexcept;
  void write_loop() noexcept EXCLUDES(mu_);
  base::Error read_frames();
  base::Result<void> handle(const Frame& frame);
  base::Result<void> handle_pong(const Frame& frame);
  void measure(std::chrono::steady_clock::time_point now);
  void send_ping(std::chrono::steady_clock::time_point now);

  const std::unique_ptr<Carrier> carrier_;
  const wire::Role role_;
  ConnectionOwner& owner_;
  const ConnectionOptions options_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();

  // Reader thread.
  FrameReader reader_;
  Assembler assembler_;
  std::chrono::steady_clock::time_point next_ping_{};
  std::chrono::steady_clock::time_point ping_sent_{};
  std::uint64_t ping_awaited_ = 0;
  std::chrono::steady_clock::time_point window_start_{};
  std::uint64_t window_bytes_ = 0;

  mutable base::Mutex mu_;  // rank: above the link's
  base::CondVar wake_;
  base::CondVar ponged_;
  FrameQueue queue_ GUARDED_BY(mu_);
  std::uint64_t pings_ GUARDED_BY(mu_) = 0;
  std::uint64_t newest_pong_ GUARDED_BY(mu_) = 0;
  bool closed_ GUARDED_BY(mu_) = false;
  std::optional<base::Error> why_ GUARDED_BY(mu_);

  std::atomic<std::uint64_t> bytes_in_{0};
  std::atomic<std::uint64_t> bytes_out_{0};
  std::atomic<std::int64_t> rtt_us_{0};
  std::atomic<double> rate_{0};

  std::jthread read_thread_;
  std::jthread write_thread_;
};

}  // namespace nearbox::channel
