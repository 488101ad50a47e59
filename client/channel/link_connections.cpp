// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "client/base/fault.h"
#include "client/channel/link_core.h"

// The part of LinkCore that brings connections in and out; all on the event thread.
namespace nearbox::channel {
namespace {

using Clock = std::chrono::steady_clock;

// What a call asks means the same to any instance of the agent. Others name roots, nodes or processes
// of the instance they were made for.
bool fits_any_instance(wire::Method method) {
  switch (method) {
    case wire::Method::kInfo:
    case wire::Method::kRootOpen:
    case wire::Method::kPushBegin:
    case wire::Method::kSubscribe:  // names its instance
    case wire::Method::kProcList:
    case wire::Method::kProcStart:  // the agent's marks keep a command from running twice
      return true;
    default:
      return false;
  }
}

wire::SessionId random_session() {
  wire::SessionId id{};
  for (std::size_t i = 0; i < id.size(); i += sizeof(std::uint64_t)) {
    const auto value = random_u64();
    std::memcpy(id.data() + i, &value, sizeof value);
  }
  return id;
}

}  // namespace

// Judges a new control connection. False: the agent is a restored snapshot that still knows our
// session as it was; we come back with another session.
bool LinkCore::accept_control_locked(const wire::Welcome& welcome, bool& same) {
  same = session_known_ && welcome_ && welcome_->instance == welcome.instance && welcome.resumed;
  if (same && !nonces_.accepts(welcome.nonce) && !base::fault::active("link.no_nonce_check")) {
    session_ = random_session();
    session_known_ = false;
    same = false;
    return false;
  }
  if (!same) nonces_.reset(welcome.nonce);
  session_known_ = true;
  return true;
}

void LinkCore::renew_session() {
  events_.post([this] {
    std::array<ConnectionPtr, 2> old;
    {
      base::MutexLock lock(mu_);
      if (stopping_ || !session_known_) return;
      session_ = random_session();
      session_known_ = false;
      old = slots_;
    }
    log_.warn("event=session_given_up action=new_session");
    const auto why = base::errno_error(ECONNRESET, "the agent is another one than before");
    for (const auto& connection : {old[1], old[0]}) {
      if (connection) handle_lost(connection, why);
    }
  });
}

void LinkCore::handle_connected(const ConnectionPtr& connection, const wire::SessionId& session,
                                const wire::Welcome& welcome) {
  bool given_up = false;
  {
    base::MutexLock lock(mu_);
    // Two may be under way for one place, when one was asked for while another was being handed over.
    if (stopping_ || slots_[slot(connection->role())]) return;
    given_up = session != session_;
  }
  if (given_up) {  // while it was dialled
    connection->close(base::errno_error(ECONNRESET, "of a session that was given up"));
    dialer_.need(connection->role(), true);
    return;
  }
  if (connection->role() == wire::Role::kControl) {
    connected_control(connection, welcome);
  } else {
    connected_bulk(connection, welcome);
  }
}

void LinkCore::connected_control(const ConnectionPtr& connection, const wire::Welcome& welcome) {
  bool accepted = false;
  bool same = false;
  bool first = false;
  ConnectionPtr bulk;
  {
    base::MutexLock lock(mu_);
    first = !welcome_;
    accepted = accept_control_locked(welcome, same);
    bulk = slots_[1];
  }
  if (bulk && !same) handle_lost(bulk, base::errno_error(ECONNRESET, "the agent is another one than before"));
  if (!accepted) {
    log_.warn("event=snapshot_restored action=new_session");
    connection->close(base::errno_error(ECONNRESET, "the agent was restored from a snapshot"));
    dialer_.need(wire::Role::kControl, true);
    return;
  }
  bool was_up = false;
  bool moved = false;
  bool want_bulk = false;
  api::CallToken made_before = 0;
  {
    base::MutexLock lock(mu_);
    if (stopping_) return;
    was_up = slots_[1] != nullptr;
    moved = was_up && note_route_[0] == slots_[1].get();
    notes_closed_ = moved;
    want_bulk = config_.second_connection && !was_up;
    gone_.reset();
    welcome_ = welcome;
    slots_[0] = connection;
    if (!first) ++reconnects_;
    made_before = next_token_;
    connection->start();
  }
  log_.info(std::string("event=link_up same_instance=") + (same ? "1" : "0"));
  if (!was_up) observers_.up(welcome, same);
  if (moved) down_and_up(base::errno_error(ECONNRESET, "the control connection is back"));
  if (!same && !first) end_calls_of_old_instance(made_before);
  flush_waiting();
  if (want_bulk) dialer_.need(wire::Role::kBulk, true);
}

void LinkCore::connected_bulk(const ConnectionPtr& connection, const wire::Welcome& welcome) {
  bool fits = false;
  bool was_up = false;
  bool moved = false;
  wire::Welcome first_welcome;
  {
    base::MutexLock lock(mu_);
    if (stopping_) return;
    fits = session_known_ && welcome_ && welcome.instance == welcome_->instance && welcome.resumed;
    if (fits) {
      first_welcome = *welcome_;
      was_up = slots_[0] != nullptr;
      moved = was_up && note_route_[1] == slots_[0].get();
      notes_closed_ = moved;
      slots_[1] = connection;
      connection->start();
    }
  }
  if (!fits) {
    auto why = base::errno_error(ECONNRESET, "the second connection reached another agent");
    log_.warn("event=connection_refused why=\"" + why.message() + "\"");
    connection->close(std::move(why));
    dialer_.need(wire::Role::kBulk, false);
    return;
  }
  if (!was_up) observers_.up(first_welcome, true);
  if (moved) down_and_up(base::errno_error(ECONNRESET, "the second connection is up"));
  flush_waiting();
}

// Notes were or will be lost or overtaken on the way from one connection to the other: their senders
// repeat what matters. notes_closed_ was set when the route changed.
void LinkCore::down_and_up(const base::Error& why) {
  observers_.down(why);
  wire::Welcome welcome;
  {
    base::MutexLock lock(mu_);
    notes_closed_ = false;
    note_route_ = {};
    welcome = *welcome_;
  }
  observers_.up(welcome, true);
}

void LinkCore::on_lost(Connection& connection, base::Error why) {
  events_.post(
      [this, lost = connection.shared_from_this(), why = std::move(why)] { handle_lost(lost, why); });
}

void LinkCore::handle_lost(const ConnectionPtr& connection, const base::Error& why) {
  connection->close(why);
  connection->join();
  const auto role = connection->role();
  bool other_up = false;
  bool notes_lost = false;
  {
    base::MutexLock lock(mu_);
    if (slots_[slot(role)] != connection || stopping_) return;
    slots_[slot(role)] = nullptr;
    other_up = slots_[1 - slot(role)] != nullptr;
    for (auto& route : note_route_) {
      if (route != connection.get()) continue;
      notes_lost = true;
      route = nullptr;
    }
    notes_closed_ = other_up && notes_lost;
    lost_in_ += connection->bytes_in();
    lost_out_ += connection->bytes_out();
    if (connection->rtt().count() != 0) last_rtt_ = connection->rtt();
    if (connection->bytes_per_second() != 0) last_rate_ = connection->bytes_per_second();
    last_error_ = why.message();
  }
  log_.info(std::string("event=connection_lost connection=") +
            (role == wire::Role::kControl ? "control" : "bulk") + " why=\"" + why.message() + "\"");
  take_back_calls(connection);
  if (!other_up) {
    observers_.down(why);
  } else if (notes_lost) {
    down_and_up(why);
  }
  if (role == wire::Role::kControl || config_.second_connection) {
    dialer_.need(role, Clock::now() - connection->started() >= config_.dead_after);
  }
  flush_waiting();
}

// Calls that ran on a connection that is gone (its threads too) wait for another, or end.
void LinkCore::take_back_calls(const ConnectionPtr& connection) {
  std::vector<CallPtr> calls;
  {
    base::MutexLock lock(mu_);
    std::size_t owed = 0;  // counted here: the analysis does not look into a function object
    std::erase_if(wires_, [&](const auto& entry) {
      const Wire& wire = entry.second;
      if (wire.connection != connection.get()) return false;
      if (wire.call) {
        wire.call->wire_id = 0;
        // What a manual call was granted and did not use is all its buffer has room for.
        wire.call->credit = wire.call->options.manual_credit
                                ? wire.credit
                                : std::min<std::uint64_t>(wire.call->options.credit, wire::kMaxCredit);
        calls.push_back(wire.call);
      } else {
        ++owed;
      }
      return true;
    });
    ends_owed_ -= owed;
  }
  std::sort(calls.begin(), calls.end(), [](const auto& a, const auto& b) { return a->token < b->token; });
  for (const auto& call : calls) {
    auto payload = call->sink->on_lost();
    const bool goes_on = payload && payload->size() <= wire::kMaxMessage;
    {
      base::MutexLock lock(mu_);
      if (goes_on) {
        call->payload = std::move(*payload);
        waiting_bytes_ += call->payload.size();
      } else {
        detach_locked(*call, false);
      }
    }
    if (!goes_on) end_sink(*call, ECONNRESET, {});
  }
}

std::vector<LinkCore::CallPtr> LinkCore::waiting_calls() {
  std::vector<CallPtr> calls;
  base::MutexLock lock(mu_);
  for (const auto& [token, call] : calls_) {
    if (call->wire_id == 0) calls.push_back(call);
  }
  std::sort(calls.begin(), calls.end(), [](const auto& a, const auto& b) { return a->token < b->token; });
  return calls;
}

void LinkCore::end_calls_of_old_instance(api::CallToken made_before) {
  for (const auto& call : waiting_calls()) {
    if (call->token >= made_before || fits_any_instance(call->method)) continue;
    finish(call->token, ECONNRESET);
  }
}

void LinkCore::flush_waiting() {
  for (const auto& call : waiting_calls()) {
    base::MutexLock lock(mu_);
    if (call->wire_id == 0 && calls_.contains(call->token)) route_locked(call);
  }
}

// On the dialer thread. True: nothing is tried again until redial().
bool LinkCore::handle_failed(wire::Role role, const base::Error& error) {
  const bool final_error = role == wire::Role::kControl && config_.is_final && config_.is_final(error);
  const int err = error.as_errno() == 0 ? EIO : error.as_errno();
  {
    base::MutexLock lock(mu_);
    last_error_ = error.message();
    if (!final_error || slots_[1]) return false;
    gone_ = base::errno_error(err, error.context);
  }
  events_.post([this, err] { end_all(err, true); });
  return true;
}

}  // namespace nearbox::channel
