// SPDX-License-Identifier: Apache-2.0
#include "client/channel/link_core.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace nearbox::channel {
namespace {

using Clock = std::chrono::steady_clock;

// Payloads of calls that wait for a connection, and bytes queued on one: more is refused.
constexpr std::size_t kMaxWaitingBytes = 256 * 1024 * 1024;
constexpr std::size_t kMaxQueuedBytes = 256 * 1024 * 1024;
// Calls that ended here and whose end the agent owes: more, and it is not one that keeps its word.
constexpr std::size_t kMaxEndsOwed = 1024;
// How long stop() waits for the agent to take the session's end.
constexpr std::chrono::milliseconds kGoodbye{300};

std::uint32_t lane_number(api::Lane lane) { return lane == api::Lane::kSmall ? 0 : 1; }

std::uint32_t milliseconds_left(const api::CallOptions& options) {
  if (options.no_deadline) return 0;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(options.deadline - Clock::now()).count();
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(left, 1, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace

LinkCore::LinkCore(LinkConfig config, base::Timers& timers, base::Logger& log)
    : config_(std::move(config)),
      timers_(timers),
      log_(log),
      dialer_(config_,
              LinkDialer::Callbacks{
                  [this] {
                    base::MutexLock lock(mu_);
                    return dialled_ = session_;
                  },
                  [this](wire::Role role, std::unique_ptr<Carrier> carrier, const wire::Welcome& welcome) {
                    wire::SessionId session{};
                    {
                      base::MutexLock lock(mu_);
                      if (stopping_) return;  // the carrier ends here, before this thread does
                      session = dialled_;
                    }
                    auto connection = std::make_shared<Connection>(
                        std::move(carrier), role, *this,
                        ConnectionOptions{config_.ping_after, config_.dead_after});
                    events_.post([this, connection, session, welcome] {
                      handle_connected(connection, session, welcome);
                    });
                  },
                  [this](wire::Role role, const base::Error& error) { return handle_failed(role, error); },
              },
              log) {
  for (std::size_t i = 0; i < session_.size(); i += sizeof(std::uint64_t)) {
    const auto value = random_u64();
    std::memcpy(session_.data() + i, &value, sizeof value);
  }
}

void LinkCore::start() {
  dialer_.need(wire::Role::kControl, true);
  dialer_.start();
}

void LinkCore::stop() {
  std::array<ConnectionPtr, 2> connections;
  {
    base::MutexLock lock(mu_);
    stopping_ = true;
    connections = slots_;
  }
  dialer_.interrupt();
  const auto& goodbye = connections[0] ? connections[0] : connections[1];
  if (goodbye) (void)goodbye->deliver_note(wire::Method::kSessionEnd, {}, Clock::now() + kGoodbye);
  for (const auto& connection : connections) {
    if (connection) connection->close(base::errno_error(ESHUTDOWN, "the link is closing"));
  }
  events_.post([this, connections] {
    for (const auto& connection : connections) {
      if (connection) connection->join();
    }
    end_all(ESHUTDOWN, false);
  });
  events_.stop();
  {
    base::MutexLock lock(mu_);
    slots_ = {};
  }
  connections = {};  // and with them their carriers: the programs behind these end in peace
  dialer_.stop();
}

api::CallToken LinkCore::call(wire::Method method, wire::Bytes payload, std::unique_ptr<api::CallSink> sink,
                              const api::CallOptions& options) {
  auto call = std::make_shared<Call>();
  call->method = method;
  call->options = options;
  call->sink = std::move(sink);
  call->payload = std::move(payload);
  call->credit = std::min<std::uint64_t>(options.credit, wire::kMaxCredit);
  int refused = 0;
  api::CallToken token = 0;
  {
    base::MutexLock lock(mu_);
    token = call->token = next_token_++;
    refused = admit_locked(*call);
    if (refused == 0) {
      calls_.emplace(token, call);
      waiting_bytes_ += call->payload.size();
      set_timer_locked(*call);
      route_locked(call);
    }
  }
  if (refused != 0) post_end(std::move(call), refused);
  return token;
}

// The errno that refuses a new call, or 0.
int LinkCore::admit_locked(const Call& call) {
  if (stopping_) return ESHUTDOWN;
  if (gone_) return gone_->as_errno();
  if (call.payload.size() > wire::kMaxMessage) return EMSGSIZE;
  if (!call.options.no_deadline && call.options.deadline <= Clock::now()) return ETIMEDOUT;
  // A cancelled call still holds its id on the wire, and so its place.
  if (std::max(calls_.size(), wires_.size()) >= wire::kMaxCallsInFlight) return EAGAIN;
  const auto connection = pick_locked(call.options.lane);
  const auto queued = connection ? connection->queued_bytes() : 0;
  const auto limit = connection ? kMaxQueuedBytes : kMaxWaitingBytes;
  if (queued + waiting_bytes_ + call.payload.size() > limit) return EAGAIN;
  return 0;
}

void LinkCore::set_timer_locked(Call& call) {
  if (call.options.no_deadline) return;
  call.timer = timers_.at(call.options.deadline, [weak = weak_from_this(), token = call.token] {
    const auto self = weak.lock();
    if (self) self->events_.post([core = self.get(), token] { core->finish(token, ETIMEDOUT); });
  });
}

LinkCore::ConnectionPtr LinkCore::pick_locked(api::Lane lane) const {
  const auto& own = slots_[lane_number(lane)];
  return own ? own : slots_[1 - lane_number(lane)];
}

// Puts a waiting call onto a connection, when there is one.
void LinkCore::route_locked(const CallPtr& call) {
  const auto connection = pick_locked(call->options.lane);
  if (!connection) return;
  auto id = next_wire_id_++;
  while (id == 0 || wires_.contains(id)) id = next_wire_id_++;
  wire::CallHead head;
  head.credit = static_cast<std::uint32_t>(call->credit);
  head.deadline_ms = milliseconds_left(call->options);
  connection->send_call(id, call->method, head, call->payload);
  wires_.emplace(id, Wire{call, connection.get(), call->credit});
  call->wire_id = id;
  call->was_sent = true;
  call->ungranted = 0;
  waiting_bytes_ -= call->payload.size();
  call->payload = {};
}

// Takes a call out of all books: its sink's end comes next. The agent is told unless it ended it.
void LinkCore::detach_locked(Call& call, bool tell_agent) {
  calls_.erase(call.token);
  if (call.timer != 0) timers_.cancel(call.timer);
  waiting_bytes_ -= call.payload.size();
  const auto it = call.wire_id == 0 ? wires_.end() : wires_.find(call.wire_id);
  call.wire_id = 0;
  if (it == wires_.end()) return;
  it->second.call = nullptr;
  if (!tell_agent || it->second.connection->send_cancel(it->first)) {
    wires_.erase(it);
  } else {
    await_end_locked(it->second);
  }
}

void LinkCore::await_end_locked(Wire& wire) {
  wire.ended = Clock::now();
  if (++ends_owed_ > kMaxEndsOwed) {
    wire.connection->close(base::errno_error(EPROTO, "the agent does not end cancelled calls"));
  } else {
    watch_ends_locked(wire.ended + config_.end_after_cancel);
  }
}

// One timer for all: it looks for what is overdue and comes again while an end is owed.
void LinkCore::watch_ends_locked(Clock::time_point until) {
  if (ends_watched_ || stopping_) return;
  ends_watched_ = true;
  timers_.at(until, [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self) self->events_.post([core = self.get()] { core->check_ends(); });
  });
}

void LinkCore::check_ends() {
  base::MutexLock lock(mu_);
  ends_watched_ = false;
  const auto overdue = Clock::now() - config_.end_after_cancel;
  auto oldest = Clock::time_point::max();
  for (const auto& [id, wire] : wires_) {
    if (wire.call) continue;
    if (wire.ended <= overdue) {
      wire.connection->close(base::errno_error(ETIMEDOUT, "the agent did not end a cancelled call"));
    } else {
      oldest = std::min(oldest, wire.ended);
    }
  }
  if (oldest != Clock::time_point::max()) watch_ends_locked(oldest + config_.end_after_cancel);
}

void LinkCore::post_end(CallPtr call, int error) {
  events_.post([call = std::move(call), error] { end_sink(*call, error, {}); });
}

void LinkCore::end_sink(Call& call, int error, wire::ByteView payload) {
  call.sink->on_end(error, payload);
  call.sink.reset();
}

// Ends a call from the event thread; a reader that is in its sink does it in our place.
void LinkCore::finish(api::CallToken token, int error) {
  CallPtr call;
  {
    base::MutexLock lock(mu_);
    const auto it = calls_.find(token);
    if (it == calls_.end()) return;
    call = it->second;
    if (call->busy) {
      if (!call->pending_end) call->pending_end = error;
      return;
    }
    detach_locked(*call, true);
  }
  end_sink(*call, error, {});
}

void LinkCore::cancel(api::CallToken token) {
  events_.post([this, token] { finish(token, ECANCELED); });
}

void LinkCore::grant(api::CallToken token, std::uint32_t bytes) {
  base::MutexLock lock(mu_);
  const auto it = calls_.find(token);
  if (it == calls_.end()) return;
  auto& call = *it->second;
  if (call.wire_id == 0) {
    call.credit = std::min<std::uint64_t>(call.credit + bytes, wire::kMaxCredit);
    return;
  }
  auto& wire = wires_.at(call.wire_id);
  const auto more = std::min<std::uint64_t>(bytes, wire::kMaxCredit - wire.credit);
  wire.credit += more;
  if (more > 0) wire.connection->send_credit(call.wire_id, static_cast<std::uint32_t>(more));
}

void LinkCore::note(wire::Method method, wire::Bytes payload, api::Lane lane) {
  base::MutexLock lock(mu_);
  const auto connection = pick_locked(lane);
  if (!connection || notes_closed_ || stopping_) return;
  if (payload.size() > wire::kMaxMessage || connection->queued_bytes() > kMaxQueuedBytes) {
    // A note must not vanish unseen: its sender repeats what matters when the link is up again.
    connection->close(base::errno_error(ENOBUFS, "too much waits to be sent"));
    return;
  }
  std::uint64_t nonce = 0;
  if (method == wire::Method::kConfirm) {
    if (auto confirm = wire::decode<wire::Confirm>(payload)) {
      nonce = nonces_.make(random_u64());
      confirm->nonce = nonce;
      payload = wire::encode(*confirm);
    }
  }
  note_route_[lane_number(lane)] = connection.get();
  const auto ping = connection->send_note(method, std::move(payload), lane_number(lane));
  if (nonce != 0) nonces_.sent(nonce, connection.get(), ping);
}

std::uint32_t LinkCore::wire_id(api::CallToken token) {
  base::MutexLock lock(mu_);
  const auto it = calls_.find(token);
  return it == calls_.end() ? 0 : it->second->wire_id;
}

base::Result<void> LinkCore::on_chunk(Connection& connection, std::uint32_t id, wire::ByteView bytes) {
  CallPtr call;
  {
    base::MutexLock lock(mu_);
    const auto it = wires_.find(id);
    if (it == wires_.end() || it->second.connection != &connection) {
      return base::errno_error(EPROTO, "chunk of an unknown call");
    }
    if (bytes.size() > it->second.credit) return base::errno_error(EPROTO, "more than the call's credit");
    it->second.credit -= bytes.size();
    call = it->second.call;
    if (!call) return {};
    call->busy = true;
  }
  call->sink->on_chunk(bytes);
  std::optional<int> end;
  {
    base::MutexLock lock(mu_);
    call->busy = false;
    end = call->pending_end;
    if (end) {
      detach_locked(*call, true);
    } else if (!call->options.manual_credit) {
      call->ungranted += bytes.size();
      // In quarters, so that credits are few and the agent never runs dry.
      if (call->ungranted * 4 >= call->options.credit) {
        wires_.at(id).credit += call->ungranted;
        connection.send_credit(id, static_cast<std::uint32_t>(call->ungranted));
        call->ungranted = 0;
      }
    }
  }
  if (end) end_sink(*call, *end, {});
  return {};
}

base::Result<void> LinkCore::on_end(Connection& connection, std::uint32_t id, int error,
                                    wire::ByteView payload) {
  CallPtr call;
  {
    base::MutexLock lock(mu_);
    const auto it = wires_.find(id);
    if (it == wires_.end() || it->second.connection != &connection) {
      return base::errno_error(EPROTO, "end of an unknown call");
    }
    call = it->second.call;
    if (call) {
      detach_locked(*call, false);
    } else {
      --ends_owed_;
      wires_.erase(it);
    }
  }
  if (call) end_sink(*call, error, payload);
  return {};
}

void LinkCore::on_pong(Connection& connection, std::uint64_t ping) {
  base::MutexLock lock(mu_);
  nonces_.pong(&connection, ping);
}

void LinkCore::end_all(int error, bool waiting_only) {
  std::vector<CallPtr> calls;
  {
    base::MutexLock lock(mu_);
    for (const auto& [token, call] : calls_) {
      if (!waiting_only || call->wire_id == 0) calls.push_back(call);
    }
    for (const auto& call : calls) detach_locked(*call, true);
  }
  std::sort(calls.begin(), calls.end(), [](const auto& a, const auto& b) { return a->token < b->token; });
  for (const auto& call : calls) end_sink(*call, error, {});
}

api::LinkStatus LinkCore::status() const {
  base::MutexLock lock(mu_);
  api::LinkStatus status;
  status.bytes_in = lost_in_;
  status.bytes_out = lost_out_;
  status.rtt = last_rtt_;
  for (const auto& connection : slots_) {
    if (!connection) continue;
    status.up = true;
    status.bytes_in += connection->bytes_in();
    status.bytes_out += connection->bytes_out();
    status.bytes_per_second = std::max(status.bytes_per_second, connection->bytes_per_second());
  }
  // Bulk bytes delay the answers to pings: the control connection knows better.
  for (const auto& connection : slots_) {
    if (!connection || connection->rtt().count() == 0) continue;
    status.rtt = connection->rtt();
    break;
  }
  if (status.bytes_per_second == 0) status.bytes_per_second = last_rate_;
  status.reconnects = reconnects_;
  status.calls = next_token_ - 1;
  status.last_error = last_error_;
  return status;
}

void LinkCore::redial() {
  {
    base::MutexLock lock(mu_);
    gone_.reset();
  }
  dialer_.redial();
}

namespace {

class LinkImpl final : public Link {
 public:
  LinkImpl(LinkConfig config, base::Timers& timers, base::Logger& log)
      : core_(std::make_shared<LinkCore>(std::move(config), timers, log)) {
    core_->start();
  }
  ~LinkImpl() override { shutdown(); }
  void shutdown() override {
    std::call_once(stopped_, [this] { core_->stop(); });
  }
  LinkImpl(const LinkImpl&) = delete;
  LinkImpl& operator=(const LinkImpl&) = delete;

  api::CallToken call(wire::Method method, wire::Bytes payload, std::unique_ptr<api::CallSink> sink,
                      const api::CallOptions& options) override {
    return core_->call(method, std::move(payload), std::move(sink), options);
  }
  void cancel(api::CallToken token) override { core_->cancel(token); }
  void grant(api::CallToken token, std::uint32_t bytes) override { core_->grant(token, bytes); }
  void note(wire::Method method, wire::Bytes payload, api::Lane lane) override {
    core_->note(method, std::move(payload), lane);
  }
  std::uint32_t wire_id(api::CallToken token) override { return core_->wire_id(token); }
  api::LinkStatus status() const override { return core_->status(); }
  void renew_session() override { core_->renew_session(); }
  void add_observer(api::LinkObserver* observer) override { core_->observers().add(observer); }
  void remove_observer(api::LinkObserver* observer) override { core_->observers().remove(observer); }
  void redial() override { core_->redial(); }

 private:
  std::once_flag stopped_;
  const std::shared_ptr<LinkCore> core_;
};

}  // namespace

std::unique_ptr<Link> make_agent_link(LinkConfig config, base::Timers& timers, base::Logger& log) {
  return std::make_unique<LinkImpl>(std::move(config), timers, log);
}

}  // namespace nearbox::channel
