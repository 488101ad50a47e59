// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "client/api/agent_link.h"
#include "client/base/mutex.h"
#include "client/channel/agent_link_impl.h"
#include "client/channel/connection.h"
#include "client/channel/event_thread.h"
#include "client/channel/link_dialer.h"
#include "client/channel/nonces.h"

namespace nearbox::channel {

// The calls of a link and where each of them is: waiting for a connection, or on one.
//
// Owns:    calls with their sinks, the two connections, the event thread and the dialer.
// Threads: any may call the public methods. Chunks and ends come on the connections' readers; ends by
//          deadline, cancellation, loss and shutdown, on_lost() and the observers on the event thread,
//          which alone adds and removes connections. A sink is in one callback at a time: Call::busy.
// Locks:   mu_ → Connection::mu_, Timers, EventThread, LinkDialer. None is held in a callback.
class LinkCore final : public ConnectionOwner, public std::enable_shared_from_this<LinkCore> {
 public:
  LinkCore(LinkConfig config, base::Timers& timers, base::Logger& log);
  void start();
  void stop() EXCLUDES(mu_);

  api::CallToken call(wire::Method method, wire::Bytes payload, std::unique_ptr<api::CallSink> sink,
                      const api::CallOptions& options) EXCLUDES(mu_);
  void cancel(api::CallToken token);
  void grant(api::CallToken token, std::uint32_t bytes) EXCLUDES(mu_);
  void note(wire::Method method, wire::Bytes payload, api::Lane lane) EXCLUDES(mu_);
  std::uint32_t wire_id(api::CallToken token) EXCLUDES(mu_);
  api::LinkStatus status() const EXCLUDES(mu_);
  void renew_session() EXCLUDES(mu_);
  ObserverList& observers() { return observers_; }
  void redial() EXCLUDES(mu_);

  base::Result<void> on_chunk(Connection& connection, std::uint32_t id, wire::ByteView bytes) override;
  base::Result<void> on_end(Connection& connection, std::uint32_t id, int error,
                            wire::ByteView payload) override;
  void on_pong(Connection& connection, std::uint64_t ping) override;
  void on_lost(Connection& connection, base::Error why) override;

 private:
  using ConnectionPtr = std::shared_ptr<Connection>;
  struct Call {
    api::CallToken token = 0;
    wire::Method method{};
    api::CallOptions options;
    std::unique_ptr<api::CallSink> sink;
    wire::Bytes payload;          // while it waits for a connection
    std::uint64_t credit = 0;     // what the agent may send, while it waits
    std::uint64_t ungranted = 0;  // received since the last automatic grant
    base::Timers::Id timer = 0;
    std::uint32_t wire_id = 0;  // 0: waits
    bool was_sent = false;
    bool busy = false;  // a reader is in its sink
    std::optional<int> pending_end;
  };
  using CallPtr = std::shared_ptr<Call>;
  // A call id in use on a connection. Without a call: ended here, the agent's end is still to come.
  struct Wire {
    CallPtr call;
    Connection* connection = nullptr;
    std::uint64_t credit = 0;
    std::chrono::steady_clock::time_point ended{};  // here, when without a call
  };

  // Calls.
  int admit_locked(const Call& call) REQUIRES(mu_);
  void set_timer_locked(Call& call) REQUIRES(mu_);
  void route_locked(const CallPtr& call) REQUIRES(mu_);
  ConnectionPtr pick_locked(api::Lane lane) const REQUIRES(mu_);
  void detach_locked(Call& call, bool tell_agent) REQUIRES(mu_);
  void await_end_locked(Wire& wire) REQUIRES(mu_);
  void watch_ends_locked(std::chrono::steady_clock::time_point until) REQUIRES(mu_);
  void check_ends() EXCLUDES(mu_);
  void post_end(CallPtr call, int error);
  void finish(api::CallToken token, int error) EXCLUDES(mu_);
  static void end_sink(Call& call, int error, wire::ByteView payload);
  void end_all(int error, bool waiting_only) EXCLUDES(mu_);
  void flush_waiting() EXCLUDES(mu_);
  std::vector<CallPtr> waiting_calls() EXCLUDES(mu_);

  // Connections; on the event thread.
  void handle_connected(const ConnectionPtr& connection, const wire::SessionId& session,
                        const wire::Welcome& welcome) EXCLUDES(mu_);
  void handle_lost(const ConnectionPtr& connection, const base::Error& why) EXCLUDES(mu_);
  void take_back_calls(const ConnectionPtr& connection) EXCLUDES(mu_);
  void end_calls_of_old_instance(api::CallToken made_before) EXCLUDES(mu_);
  void connected_control(const ConnectionPtr& connection, const wire::Welcome& welcome) EXCLUDES(mu_);
  void connected_bulk(const ConnectionPtr& connection, const wire::Welcome& welcome) EXCLUDES(mu_);
  bool accept_control_locked(const wire::Welcome& welcome, bool& same) REQUIRES(mu_);
  void down_and_up(const base::Error& why) EXCLUDES(mu_);
  bool handle_failed(wire::Role role, const base::Error& error) EXCLUDES(mu_);
  static std::size_t slot(wire::Role role) { return role == wire::Role::kControl ? 0 : 1; }

  const LinkConfig config_;
  base::Timers& timers_;
  base::Logger& log_;
  EventThread events_;
  ObserverList observers_{events_};

  mutable base::Mutex mu_;  // rank: link
  std::unordered_map<api::CallToken, CallPtr> calls_ GUARDED_BY(mu_);
  std::unordered_map<std::uint32_t, Wire> wires_ GUARDED_BY(mu_);  // ids are unique in the session
  std::size_t ends_owed_ GUARDED_BY(mu_) = 0;                      // wires without a call
  bool ends_watched_ GUARDED_BY(mu_) = false;                      // a timer runs check_ends()
  std::array<ConnectionPtr, 2> slots_ GUARDED_BY(mu_);
  std::array<const Connection*, 2> note_route_ GUARDED_BY(mu_){};  // where a lane's last note went
  bool notes_closed_ GUARDED_BY(mu_) = false;
  std::optional<wire::Welcome> welcome_ GUARDED_BY(mu_);  // of the newest control connection
  wire::SessionId session_ GUARDED_BY(mu_);
  wire::SessionId dialled_ GUARDED_BY(mu_){};   // by the dialer's thread, at last
  bool session_known_ GUARDED_BY(mu_) = false;  // an agent welcomed this session id
  NonceHistory nonces_ GUARDED_BY(mu_);
  std::optional<base::Error> gone_ GUARDED_BY(mu_);
  std::string last_error_ GUARDED_BY(mu_);
  api::CallToken next_token_ GUARDED_BY(mu_) = 1;
  std::uint32_t next_wire_id_ GUARDED_BY(mu_) = 1;
  std::size_t waiting_bytes_ GUARDED_BY(mu_) = 0;
  std::uint64_t lost_in_ GUARDED_BY(mu_) = 0, lost_out_ GUARDED_BY(mu_) = 0;  // of connections gone
  double last_rate_ GUARDED_BY(mu_) = 0;
  std::chrono::microseconds last_rtt_ GUARDED_BY(mu_){0};
  std::uint64_t reconnects_ GUARDED_BY(mu_) = 0;
  bool stopping_ GUARDED_BY(mu_) = false;

  LinkDialer dialer_;  // last: its thread uses the others
};

}  // namespace nearbox::channel
