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
    auto attach = std::make_shared<Attach>(Attach{responder, request.offset, request.settle});
    if (closing_) {
      error = ECANCELED;
    } else if (feeders_.size() >= kMaxAttaches) {
      error = EAGAIN;
    } else if (proc) {
      error = check_attach(*proc, request.offset);
    } else if (!request.early) {
      error = ENOENT;
    }
    if (error == 0) error = add_feeder(proc, request.proc, attach);
    if (error == 0 && proc) oldest = join_proc(*proc, attach);
  }
  if (oldest) oldest->responder->end(ECANCELED);
  if (error != 0) responder->end(error);
  wake();
}

int ProcTable::Impl::check_attach(const Proc& proc, std::uint64_t offset) const {
  return offset > proc.ring.end() ? EINVAL : 0;
}

// Returns an attach that gives way to it; the caller ends its call.
std::shared_ptr<Attach> ProcTable::Impl::join_proc(Proc& proc, const std::shared_ptr<Attach>& attach) {
  proc.attaches.push_back(attach);
  // A note that confirmed this much may have been lost with its connection, and the ring would stay
  // full for ever.
  proc.ring.trim(attach->position);
  if (proc.attaches.size() <= kMaxAttachesEach || proc.attaches.front()->over) return nullptr;
  proc.attaches.front()->over = true;
  proc.changed.notify_all();
  return proc.attaches.front();
}

int ProcTable::Impl::add_feeder(ProcPtr proc, std::uint64_t number, const std::shared_ptr<Attach>& attach) {
  Feeder& feeder = feeders_.emplace_back();
  feeder.attach = attach;
  try {
    feeder.thread = std::jthread([this, proc = std::move(proc), number, attach, &feeder]() noexcept {
      pthread_setname_np(pthread_self(), "proc-feed");
      const auto found = proc ? proc : await_start(number, attach);
      if (found) feed(*found, *attach);
      feeder.done = true;
      wake();  // the poll thread joins us
    });
  } catch (const std::system_error&) {
    feeders_.pop_back();
    return EAGAIN;
  }
  return 0;
}

// The process, joined; or none, and the call is ended.
ProcPtr ProcTable::Impl::await_start(std::uint64_t number, const std::shared_ptr<Attach>& attach) noexcept {
  const auto deadline = Clock::now() + kEarlyWait;
  int error = 0;
  std::shared_ptr<Attach> oldest;
  ProcPtr proc;
  while (error == 0 && !proc) {
    const bool cancelled = attach->responder->cancelled();
    base::MutexLock lock(mu_);
    proc = find(number);
    if (attach->over) return nullptr;  // who said so ends the call
    if (cancelled) {
      error = ECANCELED;
    } else if (proc) {
      error = check_attach(*proc, attach->position);
      if (error == 0) oldest = join_proc(*proc, attach);
    } else if (Clock::now() >= deadline) {
      error = ENOENT;
    } else {
      (void)arrived_.wait_until(mu_, std::min(deadline, Clock::now() + kFeedTick));
    }
    if (error != 0) attach->over = true;
  }
  if (oldest) oldest->responder->end(ECANCELED);
  if (error == 0) return proc;
  attach->responder->end(error);
  return nullptr;
}

void ProcTable::Impl::feed(Proc& proc, Attach& attach) noexcept {
  wire::Bytes batch;
  Fed fed = Fed::kMore;
  while (fed == Fed::kMore) {
    batch.clear();
    fed = next_batch(proc, attach, batch);
    if (fed == Fed::kLast) put_exit(proc, attach, batch);
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
  return !proc.final || attach.position != proc.ring.end() ? Fed::kMore : Fed::kLast;
}

// Nothing of a process that has ended changes any more.
void ProcTable::Impl::put_exit(const Proc& proc, const Attach& attach, wire::Bytes& batch) {
  const auto settled = attach.settle && options_.settle ? options_.settle() : Settled{};
  wire::ProcOutput exit;
  exit.stream = wire::ProcStream::kExit;
  exit.instance = settled.instance;
  exit.seq = settled.seq;
  {
    base::MutexLock lock(mu_);
    exit.offset = proc.ring.end();
    exit.code = proc.code;
    exit.signal = proc.signal;
  }
  put_record(batch, exit);
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
    arrived_.notify_all();
  }
  for (const auto& attach : attaches) attach->responder->end(ECANCELED);  // wakes a blocked send()
  base::MutexLock lock(mu_);
  all.swap(feeders_);
}

}  // namespace nearbox::agent
