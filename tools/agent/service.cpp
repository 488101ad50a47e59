// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/service.h"

#include <utility>

namespace nearbox::agent {
namespace {

using channel::ResponderPtr;
using wire::Method;

// Decodes and runs `fn(message)` here, on the connection's reader: for what does not block.
template <class M, class Fn>
void now(wire::ByteView payload, const ResponderPtr& responder, Fn fn) {
  auto message = wire::decode<M>(payload);
  if (!message) return responder->end(EPROTO);
  fn(std::move(*message));
}

// Where a small call may hang.
WorkerPool::Lane lane_of(Session& s, const wire::RootOpen& m) { return s.mounts.of(m.path); }
WorkerPool::Lane lane_of(Session& s, const wire::Watch& m) { return s.lane(m.root, std::string()); }
WorkerPool::Lane lane_of(Session& s, const wire::Barrier& m) { return s.lane(m.root, std::string()); }
WorkerPool::Lane lane_of(Session& /*s*/, const wire::Mounts& /*m*/) { return 0; }  // touches none of them
WorkerPool::Lane lane_of(Session& s, const wire::StatMany& m) { return s.lane(m.root, m.paths); }
WorkerPool::Lane lane_of(Session& s, const wire::PathCall& m) { return s.lane(m.root, m.path); }
WorkerPool::Lane lane_of(Session& s, const wire::XattrCall& m) { return s.lane(m.at.root, m.at.path); }
WorkerPool::Lane lane_of(Session& s, const wire::ProcStart& m) { return s.mounts.of(m.cwd); }

// Decodes here, runs `fn(message, responder)` on a worker for small calls.
template <class M, class Fn>
void on(Session& session, wire::ByteView payload, const ResponderPtr& responder, Fn fn) {
  now<M>(payload, responder, [&](M&& message) {
    const auto lane = lane_of(session, message);
    const bool taken = session.small.submit(
        [message = std::move(message), responder, fn = std::move(fn)]() mutable { fn(message, *responder); },
        lane);
    if (!taken) responder->end(EBUSY);
  });
}

// The answer of something that gives a Result.
template <class T>
void answer(channel::Responder& responder, const base::Result<T>& result) {
  if (!result) return responder.end(result.error().as_errno(), wire::as_view(result.error().context));
  if constexpr (std::is_void_v<T>) {
    responder.end(0);
  } else {
    responder.end(0, wire::encode(*result));
  }
}

}  // namespace

void Service::on_call(Method method, wire::ByteView payload, ResponderPtr responder) {
  if (session_->poisoned()) return responder->end(ESTALE);
  if (!file_call(method, payload, responder) && !push_call(method, payload, responder) &&
      !process_call(method, payload, responder)) {
    responder->end(ENOSYS);
  }
}

bool Service::file_call(Method method, wire::ByteView payload, const ResponderPtr& responder) {
  Session* const s = session_.get();  // outlives its workers' jobs
  switch (method) {
    case Method::kInfo:
      answer_info(who_, *responder);
      return true;
    case Method::kRootOpen:
      on<wire::RootOpen>(*s, payload, responder, [s](const auto& m, auto& r) { answer(r, s->open_root(m)); });
      return true;
    case Method::kWatch:
      on<wire::Watch>(*s, payload, responder, [s](const auto& m, auto& r) { answer(r, s->watch(m)); });
      return true;
    case Method::kBarrier:
      on<wire::Barrier>(*s, payload, responder, [s](const auto& m, auto& r) { answer(r, s->barrier(m)); });
      return true;
    case Method::kMounts:
      on<wire::Mounts>(*s, payload, responder,
                       [s](const auto& m, auto& r) { answer(r, s->mounts_below(m)); });
      return true;
    case Method::kTree:
      now<wire::Tree>(payload, responder, [&](wire::Tree&& m) { s->tree(m, this, responder); });
      return true;
    case Method::kStatMany:
      on<wire::StatMany>(*s, payload, responder, [context = s->reads()](const auto& m, auto& r) mutable {
        answer_stat_many(context, m, r);
      });
      return true;
    case Method::kRead:
      now<wire::Read>(payload, responder, [&](wire::Read&& m) { s->read(std::move(m), responder); });
      return true;
    case Method::kReadMany:
      now<wire::ReadMany>(payload, responder,
                          [&](wire::ReadMany&& m) { s->read_many(std::move(m), responder); });
      return true;
    case Method::kStatFs:
      on<wire::PathCall>(*s, payload, responder, [context = s->reads()](const auto& m, auto& r) mutable {
        answer_stat_fs(context, m, r);
      });
      return true;
    case Method::kGetXattr:
      on<wire::XattrCall>(*s, payload, responder, [context = s->reads()](const auto& m, auto& r) mutable {
        answer_get_xattr(context, m, r);
      });
      return true;
    case Method::kListXattr:
      on<wire::XattrCall>(*s, payload, responder, [context = s->reads()](const auto& m, auto& r) mutable {
        answer_list_xattr(context, m, r);
      });
      return true;
    case Method::kReadLink:
      on<wire::PathCall>(*s, payload, responder, [context = s->reads()](const auto& m, auto& r) mutable {
        answer_read_link(context, m, r);
      });
      return true;
    case Method::kSubscribe:
      now<wire::Subscribe>(payload, responder, [&](wire::Subscribe&& m) { s->subscribe(m, responder); });
      return true;
    default:
      return false;
  }
}

bool Service::push_call(Method method, wire::ByteView payload, const ResponderPtr& responder) {
  auto& pusher = session_->pusher();
  switch (method) {
    case Method::kPushBegin:
      now<wire::PushBegin>(payload, responder, [&](auto&& m) { pusher.begin(std::move(m), responder); });
      return true;
    case Method::kPushCompare:
      now<wire::PushPacked>(payload, responder, [&](auto&& m) { pusher.compare(std::move(m), responder); });
      return true;
    case Method::kPushApply:
      now<wire::PushPacked>(payload, responder, [&](auto&& m) { pusher.apply(std::move(m), responder); });
      return true;
    case Method::kPushPart:
      now<wire::PushPart>(payload, responder, [&](auto&& m) { pusher.part(std::move(m), responder); });
      return true;
    case Method::kPushList:
      now<wire::PushList>(payload, responder, [&](auto&& m) { pusher.list(std::move(m), responder); });
      return true;
    case Method::kPushChunks:
      now<wire::PushChunks>(payload, responder, [&](auto&& m) { pusher.chunks(std::move(m), responder); });
      return true;
    default:
      return false;
  }
}

bool Service::process_call(Method method, wire::ByteView payload, const ResponderPtr& responder) {
  Session* const s = session_.get();
  auto& procs = s->procs();
  switch (method) {
    case Method::kProcStart:
      on<wire::ProcStart>(*s, payload, responder,
                          [s](const auto& m, auto& r) { answer(r, s->procs().start(m)); });
      return true;
    case Method::kProcAttach:
      now<wire::ProcAttach>(payload, responder, [&](wire::ProcAttach&& m) { procs.attach(m, responder); });
      return true;
    case Method::kProcInput:
      now<wire::ProcInput>(payload, responder, [&](wire::ProcInput&& m) { procs.input(m, responder); });
      return true;
    case Method::kProcSignal:
      now<wire::ProcSignal>(payload, responder,
                            [&](wire::ProcSignal&& m) { answer(*responder, procs.signal(m)); });
      return true;
    case Method::kProcResize:
      now<wire::ProcResize>(payload, responder,
                            [&](wire::ProcResize&& m) { answer(*responder, procs.resize(m)); });
      return true;
    case Method::kProcList:
      responder->end(0, wire::encode(procs.list()));
      return true;
    default:
      return false;
  }
}

void Service::on_note(Method method, wire::ByteView payload) {
  if (session_->poisoned()) return;
  if (!note(method, payload)) {
    log_.warn("event=bad_note method=" + std::to_string(static_cast<unsigned>(method)));
  }
}

bool Service::note(Method method, wire::ByteView payload) {
  const auto with = [&]<class M>(std::optional<M> message, auto fn) {
    if (message) fn(std::move(*message));
    return message.has_value();
  };
  switch (method) {
    case Method::kApply: {
      auto message = wire::decode<wire::Apply>(payload);
      // Skipping a batch would break the order of all that follow.
      if (!message) session_->poison("a batch of operations does not decode");
      return with(std::move(message), [&](wire::Apply&& m) { session_->apply(std::move(m.ops)); });
    }
    case Method::kConfirm:
      return with(wire::decode<wire::Confirm>(payload), [&](auto&& m) { session_->confirm(m); });
    case Method::kOpForget:
      return with(wire::decode<wire::OrphanForget>(payload),
                  [&](auto&& m) { session_->orphans.forget(m.orphan); });
    case Method::kTreeHurry:
      return with(wire::decode<wire::TreeHurry>(payload), [&](auto&& m) { session_->hurry(m, this); });
    case Method::kProcConsumed:
      return with(wire::decode<wire::ProcConsumed>(payload),
                  [&](auto&& m) { session_->procs().consumed(m); });
    case Method::kProcForget:
      return with(wire::decode<wire::ProcForget>(payload), [&](auto&& m) { session_->procs().forget(m); });
    case Method::kSessionEnd:
      session_->set_ended();
      return true;
    default:
      return false;
  }
}

}  // namespace nearbox::agent
