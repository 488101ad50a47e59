// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/pusher.h"

#include <cerrno>
#include <utility>

#include "client/wire/pack.h"
#include "tools/agent/born_as.h"
#include "tools/agent/push_apply.h"
#include "tools/agent/push_look.h"

namespace nearbox::agent {
namespace {

// The message in a packed body.
template <class M>
base::Result<M> unpacked(const wire::PushPacked& packed) {
  if (packed.raw_size > wire::kMaxPushRaw) return base::errno_error(EPROTO, "body");
  auto raw = wire::unpack(packed.body, packed.raw_size);
  if (!raw) return std::move(raw).error();
  auto message = wire::decode<M>(*raw);
  if (!message) return base::errno_error(EPROTO, "body");
  return *std::move(message);
}

}  // namespace

Pusher::Pusher(const Identity& who, RootTable& roots, Open open, Changed changed)
    : who_(who),
      roots_(roots),
      open_(std::move(open)),
      changed_(std::move(changed)),
      stages_(who),
      pool_("push", kPushThreads) {}

template <class Job>
void Pusher::run(const channel::ResponderPtr& responder, Job job) {
  const bool taken = pool_.submit([responder, job = std::move(job)] {
    if (responder->cancelled()) return responder->end(ECANCELED);
    auto done = job(*responder);
    if (!done) responder->end(done.error().as_errno(), wire::as_view(done.error().context));
  });
  if (!taken) responder->end(EBUSY);
}

void Pusher::begin(wire::PushBegin call, channel::ResponderPtr responder) {
  run(responder, [this, call = std::move(call)](channel::Responder& r) -> base::Result<void> {
    auto opened = open_({call.path, call.create});
    if (!opened) return std::move(opened).error();
    auto root = roots_.get(opened->root);
    if (!root) return std::move(root).error();
    wire::PushBeginReply reply;
    reply.root = opened->root;
    reply.path = opened->path;
    if (call.checks.raw_size > 0) {
      auto list = unpacked<wire::PushCheckList>(call.checks);
      if (!list) return std::move(list).error();
      if (list->stamps.size() != list->paths.size() * wire::kPushCheckBytes) {
        return base::errno_error(EPROTO, "checks");
      }
      reply.differs = check_stamps(**root, *list);
    }
    auto stage = stages_.of(*root);
    if (!stage) return std::move(stage).error();
    reply.stages = (*stage)->stages();
    reply.empty = is_empty(**root);
    reply.free_bytes = free_bytes(**root);
    reply.realtime_ns = clock_now_ns();
    r.end(0, wire::encode(reply));
    return {};
  });
}

void Pusher::compare(wire::PushPacked call, channel::ResponderPtr responder) {
  run(responder, [this, call = std::move(call)](channel::Responder& r) -> base::Result<void> {
    auto root = roots_.get(call.root);
    if (!root) return std::move(root).error();
    auto list = unpacked<wire::PushCompareList>(call);
    if (!list) return std::move(list).error();
    r.end(0, wire::encode(compare_items(**root, *list)));
    return {};
  });
}

void Pusher::apply(wire::PushPacked call, channel::ResponderPtr responder) {
  run(responder, [this, call = std::move(call)](channel::Responder& r) -> base::Result<void> {
    auto root = roots_.get(call.root);
    if (!root) return std::move(root).error();
    auto batch = unpacked<wire::PushBatch>(call);
    if (!batch) return std::move(batch).error();
    auto stage = stages_.of(*root);
    if (!stage) return std::move(stage).error();
    const BornAs born(who_.uid, who_.gid);
    PushApplier applier(who_, *root, *stage, [&](const std::string& path, const Stat* st, bool made) {
      changed_(*root, path, st, made);
    });
    wire::PushReply reply;
    reply.results.reserve(batch->entries.size());
    for (const auto& entry : batch->entries) reply.results.push_back(applier.apply(entry));
    r.end(0, wire::encode(reply));
    return {};
  });
}

void Pusher::part(wire::PushPart call, channel::ResponderPtr responder) {
  run(responder, [this, call = std::move(call)](channel::Responder& r) -> base::Result<void> {
    auto root = roots_.get(call.body.root);
    if (!root) return std::move(root).error();
    if (call.body.raw_size > wire::kMaxPushRaw) return base::errno_error(EPROTO, "part");
    wire::Bytes raw;
    if (call.body.raw_size > 0) {
      auto unpacked_body = wire::unpack(call.body.body, call.body.raw_size);
      if (!unpacked_body) return std::move(unpacked_body).error();
      raw = *std::move(unpacked_body);
    }
    auto stage = stages_.of(*root);
    if (!stage) return std::move(stage).error();
    const BornAs born(who_.uid, who_.gid);
    if (auto written = write_part(**root, **stage, call, raw); !written) return written;
    r.end(0);
    return {};
  });
}

void Pusher::list(wire::PushList call, channel::ResponderPtr responder) {
  run(responder, [this, call = std::move(call)](channel::Responder& r) -> base::Result<void> {
    auto root = roots_.get(call.root);
    if (!root) return std::move(root).error();
    answer_list(**root, call, r);
    return {};
  });
}

void Pusher::chunks(wire::PushChunks call, channel::ResponderPtr responder) {
  run(responder, [this, call = std::move(call)](channel::Responder& r) -> base::Result<void> {
    auto root = roots_.get(call.root);
    if (!root) return std::move(root).error();
    auto stage = stages_.of(*root);
    if (!stage) return std::move(stage).error();
    answer_chunks(**root, **stage, call, r);
    return {};
  });
}

}  // namespace nearbox::agent
