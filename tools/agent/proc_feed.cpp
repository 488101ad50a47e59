// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <pthread.h>
#include <system_error>

#include "tools/agent/proc_table_impl.h"

namespace nearbox::agent {
namespace {

constexpr std::size_t kFeedBatch = 64 * 1024;                      // handed to the responder at once
constexpr std::size_t kPieceBytes = wire::kMaxFramePayload - 256;  // so that a record fits a frame

void put_record(wire::Bytes& batch, const wire::ProcOutput& output) {
  const auto at = batch.size();
  wire::Writer writer(batch);
  writer.num(std::uint32_t{0});
  fields(writer, output);
  const auto length = static_cast<std::uint32_t>(batch.size() - at - sizeof(std::uint32_t));
  std::memcpy(batch.data() + at, &length, sizeof length);
}

}  // namespace

void ProcTable::Impl::attach(const wire::ProcAttach& request, channel::ResponderPtr responder) {
  int error = 0;
  std::shared_ptr<Attach> oldest;
  {
    base::MutexLock lock(mu_);
    const ProcPtr proc = find(request.proc);
    if (closing_) {
      error = ECANCELED;
    } else if (!proc) {
      error = ENOENT;
    } else if (request.offset > proc->ring.end()) {
      error = EINVAL;
    } else if (feeders_.size() >= kMaxAttaches) {
      error = EAGAIN;
    } else {
      error = add_feeder(proc, std::make_shared<Attach>(Attach{responder, request.offset}));
    }
    if (error == 0) {
      // A note that confirmed this much may have been lost with its connection, and the ring would
      // stay full for ever.
      proc->ring.trim(request.offset);
      if (proc->attaches.size() > kMaxAttachesEach && !proc->attaches.front()->over) {
        oldest = proc->attaches.front();
        oldest->over = true;
        proc->changed.notify_all();
      }
    }
  }
  if (oldest) oldest->responder->end(ECANCELED);
  if (error != 0) responder->end(error);
  wake();
}

int ProcTable::Impl::add_feeder(const ProcPtr& proc, const std::shared_ptr<Attach>& attach) {
  Feeder& feeder = feeders_.emplace_back();
  feeder.attach = attach;
  try {
    feeder.thread = std::jthread([this, proc, attach, &feeder]() noexcept {
      pthread_setname_np(pthread_self(), "proc-feed");
      feed(*proc, *attach);
      feeder.done = true;
      wake();  // the poll thread joins us
    });
  } catch (const std::system_error&) {
    feeders_.pop_back();
    return EAGAIN;
  }
  proc->attaches.push_back(attach);
  return 0;
}

void ProcTable::Impl::feed(Proc& proc, Attach& attach) noexcept {
  wire::Bytes batch;
  Fed fed = Fed::kMore;
  while (fed == Fed::kMore) {
    batch.clear();
    fed = next_batch(proc, attach, batch);
    if (batch.empty()) {
      if (attach.responder->cancelled()) fed = Fed::kOver;
    } else if (!attach.responder->send(batch)) {
      fed = Fed::kOver;
    }
  }
  finish_attach(proc, attach, fed);
}

ProcTable::Impl::Fed ProcTable::Impl::next_batch(Proc& proc, Attach& attach, wire::Bytes& batch) {
  base::MutexLock lock(mu_);
  const auto idle = [&] {
    return !attach.over && !proc.failed && !proc.final && attach.position == proc.ring.end();
  };
  if (idle()) proc.changed.wait_until(mu_, Clock::now() + kFeedTick);
  if (attach.over || proc.failed) return Fed::kOver;
  fill_batch(proc, attach, batch);
  if (!proc.final || attach.position != proc.ring.end()) return Fed::kMore;
  wire::ProcOutput exit;
  exit.stream = wire::ProcStream::kExit;
  exit.offset = proc.ring.end();
  exit.code = proc.code;
  exit.signal = proc.signal;
  put_record(batch, exit);
  return Fed::kLast;
}

void ProcTable::Impl::fill_batch(Proc& proc, Attach& attach, wire::Bytes& batch) {
  const ProcRing& ring = proc.ring;
  while (batch.size() < kFeedBatch && attach.position < ring.end()) {
    wire::ProcOutput output;
    output.offset = attach.position;
    if (attach.position < ring.begin()) {
      output.stream = wire::ProcStream::kGap;
      output.lost = ring.begin() - attach.position;
      attach.position = ring.begin();
      put_record(batch, output);
      continue;
    }
    auto piece = ring.piece(attach.position, kPieceBytes);
    output.stream = piece.stream;
    output.data = std::move(piece.data);
    attach.position += output.data.size();
    put_record(batch, output);
  }
}

void ProcTable::Impl::finish_attach(Proc& proc, Attach& attach, Fed how) {
  bool ours = false;
  int error = how == Fed::kLast ? 0 : ECANCELED;
  {
    base::MutexLock lock(mu_);
    if (proc.failed) error = ENOENT;
    if (how == Fed::kLast) proc.exit_sent = true;
    ours = !std::exchange(attach.over, true);
    std::erase_if(proc.attaches, [&](const auto& other) { return other.get() == &attach; });
    if (proc.attaches.empty() && connected_) {
      proc.hold_until = Clock::now() + std::chrono::milliseconds(options_.attach_grace_ms);
    }
  }
  if (ours) attach.responder->end(error);
}

void ProcTable::Impl::join_finished_feeders() {
  std::list<Feeder> finished;
  base::MutexLock lock(mu_);
  for (auto it = feeders_.begin(); it != feeders_.end();) {
    const auto next = std::next(it);
    if (it->done) finished.splice(finished.end(), feeders_, it);
    it = next;
  }
}

void ProcTable::Impl::end_feeders() {
  std::vector<std::shared_ptr<Attach>> attaches;
  std::list<Feeder> all;
  {
    base::MutexLock lock(mu_);
    closing_ = true;
    for (auto& feeder : feeders_) {
      if (!std::exchange(feeder.attach->over, true)) attaches.push_back(feeder.attach);
    }
    for (const auto& [number, proc] : procs_) proc->changed.notify_all();
  }
  for (const auto& attach : attaches) attach->responder->end(ECANCELED);  // wakes a blocked send()
  base::MutexLock lock(mu_);
  all.swap(feeders_);
}

}  // namespace nearbox::agent
