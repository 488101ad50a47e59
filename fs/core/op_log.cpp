// SPDX-License-Identifier: Apache-2.0
#include "fs/core/op_log.h"

#include <algorithm>
#include <cerrno>
#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "client/base/fault.h"
#include "fs/core/calls.h"

namespace nearbox::fs {
namespace {

using base::MutexLock;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kWaitStep{1};                      // one look at whether a batch has left
constexpr std::chrono::milliseconds kTick{250};                   // how exact deadlines are
constexpr std::size_t kMaxBatch = wire::kMaxMessage - 64 * 1024;  // one operation always fits beside it
constexpr std::uint64_t kOpOverhead = 512;                        // counted for an operation beside its data

std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

std::uint64_t cost(const wire::Op& op) { return op.data.size() + kOpOverhead; }

}  // namespace

std::uint64_t node_key(const wire::NodeId& id) {
  return mix(mix(id.dev + 0x9e3779b97f4a7c15ULL) ^ id.ino) | 2;  // never kTreeKey
}

std::uint64_t name_key(const wire::NodeId& dir, std::string_view name) {
  return mix(node_key(dir) ^ std::hash<std::string_view>{}(name)) | 2;
}

void DirRenames::begin(std::function<void()> go) {
  {
    MutexLock lock(mu_);
    if (holders_ > 0 && waiting_.size() < kMaxWaitingRenames) {
      waiting_.push_back(std::move(go));
      return;
    }
    pending_.fetch_add(1);
  }
  go();
}

void DirRenames::hold() {
  MutexLock lock(mu_);
  ++holders_;
}

void DirRenames::release() {
  std::vector<std::function<void()>> go;
  {
    MutexLock lock(mu_);
    if (--holders_ > 0) return;
    go.swap(waiting_);
    pending_.fetch_add(go.size());
  }
  for (const auto& fn : go) fn();
}

std::size_t DirRenames::waiting() const {
  MutexLock lock(mu_);
  return waiting_.size();
}

class OpLog::Impl final : public api::LinkObserver, public std::enable_shared_from_this<OpLog::Impl> {
 public:
  Impl(api::AgentLink& link, base::Timers& timers, base::Logger& log, RootPath root_path,
       const OpLogOptions& options)
      : link_(link), timers_(timers), log_(log), root_path_(std::move(root_path)), options_(options) {}

  void start() { link_.add_observer(this); }
  void submit(wire::Op op, Fn applied, Fn reply);
  void done(const wire::OpDone& event);
  std::size_t size() const {
    MutexLock lock(mu_);
    return records_.size() + waiting_.size();
  }
  void when_drained(std::function<void()> fn);
  void close();
  void forget_orphan(std::uint64_t orphan) {
    link_.note(wire::Method::kOpForget, wire::encode(wire::OrphanForget{orphan}), api::Lane::kBulk);
  }

  void on_up(const wire::Welcome& welcome, bool same_instance) noexcept override;
  void on_down(const base::Error& why) noexcept override;

  Orphans orphans_;
  DirRenames dir_renames_;

 private:
  struct Record {
    wire::Op op;
    Fn applied, reply;
    Clock::time_point deadline;
    std::uint64_t order = 0;  // of submission, over all agent instances
    bool sent = false;        // to any agent: its fate is unknown when that one is gone
  };
  struct Drain {
    std::uint64_t order;
    std::function<void()> fn;
  };
  using Calls = std::vector<std::function<void()>>;

  bool room_locked(std::uint64_t bytes) const REQUIRES(mu_) {
    return records_.empty() ||
           (records_.size() < options_.max_records && bytes_ + bytes <= options_.max_bytes);
  }
  void admit_locked(Record record) REQUIRES(mu_);
  void admit_waiting_locked() REQUIRES(mu_);
  void drained_locked(Calls& calls) REQUIRES(mu_);
  wire::Bytes next_batch_locked() REQUIRES(mu_);
  void flush();
  void arm_locked() REQUIRES(mu_);
  void tick();
  void renumber_locked(Calls& calls) REQUIRES(mu_);
  void reopen_root(std::uint64_t epoch);
  void root_opened(std::uint64_t epoch, int error, const wire::RootReply& reply);
  static void end(Record&& record, int error, Calls& calls);
  static void run(Calls& calls) {
    for (auto& call : calls) call();
  }

  api::AgentLink& link_;
  base::Timers& timers_;
  base::Logger& log_;
  const RootPath root_path_;
  const OpLogOptions options_;

  mutable base::Mutex mu_;
  base::CondVar sent_;                                       // sending_ became false
  std::map<std::uint64_t, Record> records_ GUARDED_BY(mu_);  // by op_id
  std::deque<Record> waiting_ GUARDED_BY(mu_);
  std::vector<Drain> drains_ GUARDED_BY(mu_);
  std::uint64_t bytes_ GUARDED_BY(mu_) = 0;
  std::uint64_t waiting_bytes_ GUARDED_BY(mu_) = 0;
  std::uint64_t next_id_ GUARDED_BY(mu_) = 1;
  std::uint64_t next_send_ GUARDED_BY(mu_) = 1;
  std::uint64_t next_order_ GUARDED_BY(mu_) = 1;
  std::uint64_t epoch_ GUARDED_BY(mu_) = 0;  // agent instances seen
  std::uint32_t root_ GUARDED_BY(mu_) = 0;   // replaces op.root once epoch_ > 1
  bool have_root_ GUARDED_BY(mu_) = false;
  bool ready_ GUARDED_BY(mu_) = true;  // numbers and root are those of the present agent
  // Between on_down() and on_up() nothing is sent: the link takes notes for a new connection before it
  // tells whose it is, and numbers of one agent mean other operations to another.
  bool link_down_ GUARDED_BY(mu_) = true;
  bool sending_ GUARDED_BY(mu_) = false;
  bool armed_ GUARDED_BY(mu_) = false;
  bool closed_ GUARDED_BY(mu_) = false;
};

void OpLog::Impl::end(Record&& record, int error, Calls& calls) {
  wire::OpDone event;
  event.op_id = record.op.op_id;
  event.error = error;
  if (record.applied) calls.push_back([fn = std::move(record.applied), event] { fn(event); });
  if (record.reply) calls.push_back([fn = std::move(record.reply), event] { fn(event); });
}

void OpLog::Impl::submit(wire::Op op, Fn applied, Fn reply) {
  Calls calls;
  {
    MutexLock lock(mu_);
    Record record{std::move(op),    std::move(applied),
                  std::move(reply), Clock::now() + options_.deadline,
                  next_order_++,    false};
    const auto bytes = cost(record.op);
    if (closed_) {
      end(std::move(record), ESHUTDOWN, calls);
    } else if (waiting_.empty() && room_locked(bytes)) {
      admit_locked(std::move(record));
    } else if (waiting_.size() < options_.max_waiting &&
               waiting_bytes_ + bytes <= options_.max_waiting_bytes) {
      waiting_bytes_ += bytes;
      waiting_.push_back(std::move(record));
    } else {
      end(std::move(record), ENOSPC, calls);
    }
    arm_locked();
  }
  run(calls);
  flush();
}

void OpLog::Impl::admit_locked(Record record) {
  record.op.op_id = next_id_++;
  if (have_root_) record.op.root = root_;
  bytes_ += cost(record.op);
  const auto id = record.op.op_id;
  records_.emplace(id, std::move(record));
}

void OpLog::Impl::admit_waiting_locked() {
  while (!waiting_.empty() && room_locked(cost(waiting_.front().op))) {
    waiting_bytes_ -= cost(waiting_.front().op);
    admit_locked(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// As many unsent operations as one message takes. All go on one lane, so they leave in order.
wire::Bytes OpLog::Impl::next_batch_locked() {
  wire::Bytes batch;
  auto it = records_.lower_bound(next_send_);
  if (it == records_.end()) return batch;
  wire::Writer writer(batch);
  std::uint32_t count = 0;
  writer.num(count);
  std::size_t room = kMaxBatch;
  for (; it != records_.end() && count < wire::kMaxOpsPerBatch; ++it) {
    const wire::Op& op = it->second.op;
    const std::size_t size =
        op.data.size() + op.path.size() + op.path2.size() + op.target.size() + kOpOverhead;
    if (count != 0 && size > room) break;
    room -= std::min(size, room);
    fields(writer, op);
    it->second.sent = true;
    next_send_ = it->first + 1;
    ++count;
  }
  std::memcpy(batch.data(), &count, sizeof(count));
  return batch;
}

// One thread at a time sends; what others add meanwhile goes with its next batch.
void OpLog::Impl::flush() {
  while (true) {
    wire::Bytes batch;
    {
      MutexLock lock(mu_);
      if (sending_ || link_down_ || !ready_ || closed_) return;
      batch = next_batch_locked();
      if (batch.empty()) return;
      sending_ = true;
    }
    link_.note(wire::Method::kApply, std::move(batch), api::Lane::kBulk);
    MutexLock lock(mu_);
    sending_ = false;
    sent_.notify_all();
  }
}

void OpLog::Impl::done(const wire::OpDone& event) {
  Calls calls;
  Fn applied, reply;
  {
    MutexLock lock(mu_);
    const auto it = records_.find(event.op_id);
    if (it == records_.end()) return;  // acknowledged before: events may repeat after a rollback
    applied = std::move(it->second.applied);
    reply = std::move(it->second.reply);
    bytes_ -= cost(it->second.op);
    records_.erase(it);
    admit_waiting_locked();
  }
  if (applied) applied(event);
  if (reply) reply(event);
  {
    MutexLock lock(mu_);
    drained_locked(calls);
  }
  run(calls);
  flush();
}

void OpLog::Impl::drained_locked(Calls& calls) {
  if (drains_.empty()) return;
  std::uint64_t first = next_order_;
  for (const auto& [id, record] : records_) first = std::min(first, record.order);
  if (!waiting_.empty()) first = std::min(first, waiting_.front().order);
  std::erase_if(drains_, [&](Drain& drain) {
    if (drain.order > first) return false;
    calls.push_back(std::move(drain.fn));
    return true;
  });
}

void OpLog::Impl::when_drained(std::function<void()> fn) {
  Calls calls;
  {
    MutexLock lock(mu_);
    drains_.push_back({next_order_, std::move(fn)});
    drained_locked(calls);
  }
  run(calls);
}

void OpLog::Impl::arm_locked() {
  if (armed_ || closed_ || (records_.empty() && waiting_.empty())) return;
  armed_ = true;
  timers_.after(kTick, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->tick();
  });
}

void OpLog::Impl::tick() {
  Calls calls;
  {
    MutexLock lock(mu_);
    armed_ = false;
    const auto now = Clock::now();
    for (auto& [id, record] : records_) {
      if (record.deadline > now) break;  // ids are in the order of deadlines
      if (!record.reply) continue;
      wire::OpDone event;
      event.op_id = id;
      event.error = ETIMEDOUT;
      calls.push_back([fn = std::exchange(record.reply, nullptr), event] { fn(event); });
    }
    while (!waiting_.empty() && waiting_.front().deadline <= now) {
      waiting_bytes_ -= cost(waiting_.front().op);
      end(std::move(waiting_.front()), ETIMEDOUT, calls);
      waiting_.pop_front();
    }
    drained_locked(calls);
    arm_locked();
  }
  run(calls);
}

// A batch that is on its way to the link belongs to the connection that is gone: it must not reach the
// next one. note() never waits, so neither does this for long.
void OpLog::Impl::on_down(const base::Error&) noexcept {
  MutexLock lock(mu_);
  link_down_ = true;
  while (sending_) (void)sent_.wait_until(mu_, Clock::now() + kWaitStep);
}

void OpLog::Impl::on_up(const wire::Welcome&, bool same_instance) noexcept {
  Calls calls;
  std::uint64_t reopen = 0;
  {
    MutexLock lock(mu_);
    if (closed_) return;
    if (!same_instance && ++epoch_ > 1) {
      renumber_locked(calls);
      ready_ = false;
      reopen = epoch_;
    }
    const bool resend = !base::fault::active("fs.no_resend");
    next_send_ = records_.empty() || !resend ? next_id_ : records_.begin()->first;
    link_down_ = false;
  }
  run(calls);
  if (reopen != 0) return reopen_root(reopen);
  flush();
}

// A new agent counts operations from one and keeps none of the old one's unlinked files.
void OpLog::Impl::renumber_locked(Calls& calls) {
  orphans_.clear_numbers();
  std::map<std::uint64_t, Record> old;
  old.swap(records_);
  next_id_ = 1;
  bytes_ = 0;
  for (auto& [id, record] : old) {
    if (record.op.orphan != 0) {
      end(std::move(record), ESTALE, calls);
      continue;
    }
    if (record.sent) record.op.op_flags |= wire::kOpRetry;
    admit_locked(std::move(record));
  }
  // Kept files are named by operation numbers, which begin again: to the new agent they may be others.
  std::deque<Record> waiting;
  waiting.swap(waiting_);
  waiting_bytes_ = 0;
  for (auto& record : waiting) {
    if (record.op.orphan != 0) {
      end(std::move(record), ESTALE, calls);
      continue;
    }
    waiting_bytes_ += cost(record.op);
    waiting_.push_back(std::move(record));
  }
  admit_waiting_locked();
  drained_locked(calls);
}

void OpLog::Impl::reopen_root(std::uint64_t epoch) {
  wire::RootOpen message;
  message.path = root_path_();
  ask<wire::RootReply>(link_, wire::Method::kRootOpen, message, Clock::now() + options_.deadline,
                       [weak = weak_from_this(), epoch](int error, wire::RootReply&& reply) {
                         if (const auto self = weak.lock()) self->root_opened(epoch, error, reply);
                       });
}

void OpLog::Impl::root_opened(std::uint64_t epoch, int error, const wire::RootReply& reply) {
  {
    MutexLock lock(mu_);
    if (closed_ || epoch != epoch_) return;
    if (error == 0) {
      root_ = reply.root;
      have_root_ = true;
      ready_ = true;
      for (auto& [id, record] : records_) record.op.root = root_;
    }
  }
  if (error == 0) return flush();
  log_.warn("op_log step=open_root errno=" + std::to_string(error));
  timers_.after(options_.root_retry, [weak = weak_from_this(), epoch] {
    if (const auto self = weak.lock()) self->reopen_root(epoch);
  });
}

void OpLog::Impl::close() {
  Calls calls;
  {
    MutexLock lock(mu_);
    if (std::exchange(closed_, true)) return;
    for (auto& [id, record] : records_) end(std::move(record), ESHUTDOWN, calls);
    for (auto& record : waiting_) end(std::move(record), ESHUTDOWN, calls);
    records_.clear();
    waiting_.clear();
    for (auto& drain : drains_) calls.push_back(std::move(drain.fn));
    drains_.clear();
  }
  link_.remove_observer(this);
  run(calls);
}

OpLog::OpLog(api::AgentLink& link, base::Timers& timers, base::Logger& log, RootPath root_path,
             OpLogOptions options)
    : impl_(std::make_shared<Impl>(link, timers, log, std::move(root_path), options)) {
  impl_->start();
}
OpLog::~OpLog() { impl_->close(); }

void OpLog::attach(sync::EventStream& events) {
  events.on_op_done([weak = std::weak_ptr(impl_)](const wire::OpDone& done) {
    if (const auto impl = weak.lock()) impl->done(done);
  });
}
void OpLog::on_op_done(const wire::OpDone& done) { impl_->done(done); }
void OpLog::submit(wire::Op op, Fn applied, Fn reply) {
  impl_->submit(std::move(op), std::move(applied), std::move(reply));
}
std::size_t OpLog::unacknowledged() const { return impl_->size(); }
void OpLog::when_drained(std::function<void()> fn) { impl_->when_drained(std::move(fn)); }
void OpLog::close() { impl_->close(); }
Orphans& OpLog::orphans() { return impl_->orphans_; }
DirRenames& OpLog::dir_renames() { return impl_->dir_renames_; }
void OpLog::forget_orphan(std::uint64_t orphan) { impl_->forget_orphan(orphan); }

}  // namespace nearbox::fs
