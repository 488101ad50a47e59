// SPDX-License-Identifier: Apache-2.0
#include "client/channel/connection.h"

#include <algorithm>
#include <pthread.h>

namespace nearbox::channel {
namespace {

using Clock = std::chrono::steady_clock;
using wire::FrameType;

// Longest one write may take; a dead peer is found by its silence, long before.
constexpr std::chrono::seconds kWriteTimeout{60};
// The receive rate is measured over windows that moved at least kRateBytes: idle time is no rate.
constexpr std::chrono::milliseconds kRateWindow{100};
constexpr std::uint64_t kRateBytes = 64 * 1024;
constexpr std::size_t kMaxQueuedForPong = 8 * 1024 * 1024;

}  // namespace

Connection::Connection(std::unique_ptr<Carrier> carrier, wire::Role role, ConnectionOwner& owner,
                       const ConnectionOptions& options)
    : carrier_(std::move(carrier)), role_(role), owner_(owner), options_(options), reader_(*carrier_) {}

Connection::~Connection() {
  close(base::errno_error(ESHUTDOWN));
  join();
}

void Connection::start() {
  read_thread_ = std::jthread([this] { read_loop(); });
  write_thread_ = std::jthread([this] { write_loop(); });
}

void Connection::join() {
  if (read_thread_.joinable()) read_thread_.join();
  if (write_thread_.joinable()) write_thread_.join();
}

void Connection::close(base::Error why) {
  {
    base::MutexLock lock(mu_);
    if (!why_) why_ = std::move(why);
    closed_ = true;
    queue_.clear();
    wake_.notify_all();
    ponged_.notify_all();
  }
  carrier_->shutdown();
}

void Connection::send_call(std::uint32_t id, wire::Method method, const wire::CallHead& head,
                           wire::ByteView payload) {
  wire::Bytes bytes;
  bytes.reserve(kCallHeadBytes + payload.size());
  wire::Writer writer(bytes);
  fields(writer, head);
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  base::MutexLock lock(mu_);
  if (closed_) return;
  queue_.push(FrameQueue::call_stream(id), FrameType::kCall, static_cast<std::uint16_t>(method), id,
              std::move(bytes));
  wake_.notify_one();
}

bool Connection::send_cancel(std::uint32_t id) {
  base::MutexLock lock(mu_);
  if (closed_) return false;
  if (queue_.drop_unsent(FrameQueue::call_stream(id))) return true;
  queue_.push(FrameQueue::call_stream(id), FrameType::kCancel, 0, id, {});
  wake_.notify_one();
  return false;
}

void Connection::send_credit(std::uint32_t id, std::uint32_t bytes) {
  wire::Bytes payload;
  wire::Writer(payload).num(bytes);
  base::MutexLock lock(mu_);
  if (closed_) return;
  // Behind the call itself when that still goes out in pieces.
  queue_.push(FrameQueue::call_stream(id), FrameType::kCredit, 0, id, std::move(payload));
  wake_.notify_one();
}

std::uint64_t Connection::send_note(wire::Method method, wire::Bytes payload, std::uint32_t lane) {
  base::MutexLock lock(mu_);
  if (closed_) return pings_;
  queue_.push(FrameQueue::note_stream(lane), FrameType::kNote, static_cast<std::uint16_t>(method), lane,
              std::move(payload), lane == 0 ? FrameQueue::Class::kSmall : FrameQueue::Class::kBulk);
  wake_.notify_one();
  return pings_;
}

bool Connection::deliver_note(wire::Method method, wire::Bytes payload, Deadline deadline) {
  (void)send_note(method, std::move(payload), 0);
  base::MutexLock lock(mu_);
  if (closed_) return false;
  // The agent answers a ping after it took the notes before it.
  const std::uint64_t number = ++pings_;
  queue_.push_small(FrameType::kPing, 0, std::as_bytes(std::span(&number, 1)));
  wake_.notify_one();
  while (!closed_ && newest_pong_ < number && Clock::now() < deadline) ponged_.wait_until(mu_, deadline);
  return newest_pong_ >= number;
}

std::size_t Connection::queued_bytes() const {
  base::MutexLock lock(mu_);
  return queue_.small_bytes() + queue_.bulk_bytes();
}

void Connection::write_loop() noexcept {
  pthread_setname_np(pthread_self(), "link-write");
  wire::Bytes out;
  while (true) {
    out.clear();
    {
      base::MutexLock lock(mu_);
      while (!closed_ && queue_.empty()) wake_.wait_until(mu_, Clock::now() + base::kIdleWait);
      if (closed_) return;
      queue_.next(out);
    }
    auto done = carrier_->write(out, Clock::now() + kWriteTimeout);
    if (!done) {
      close(std::move(done).error());
      return;
    }
    bytes_out_.fetch_add(out.size(), std::memory_order_relaxed);
  }
}

void Connection::read_loop() noexcept {
  pthread_setname_np(pthread_self(), "link-read");
  auto error = read_frames();
  close(error);
  {
    base::MutexLock lock(mu_);
    if (why_) error = *why_;  // whoever closed first knows why
  }
  owner_.on_lost(*this, std::move(error));
}

base::Error Connection::read_frames() {
  while (true) {
    const auto now = Clock::now();
    if (now >= next_ping_) send_ping(now);
    auto frame = reader_.next(std::min(next_ping_, reader_.last_byte() + options_.dead_after));
    if (!frame) {
      if (frame.error().as_errno() != ETIMEDOUT) return std::move(frame).error();
      if (Clock::now() - reader_.last_byte() >= options_.dead_after) {
        return base::errno_error(ETIMEDOUT, "the agent fell silent");
      }
      continue;
    }
    if (!*frame) return base::errno_error(ECONNRESET, "the agent closed the connection");
    measure(reader_.last_byte());
    if (auto done = handle(**frame); !done) return std::move(done).error();
  }
}

void Connection::measure(Clock::time_point now) {
  const auto total = reader_.bytes_in();
  bytes_in_.store(total, std::memory_order_relaxed);
  const auto elapsed = now - window_start_;
  if (elapsed < kRateWindow) return;
  const auto moved = total - window_bytes_;
  if (moved >= kRateBytes) {
    const double rate = static_cast<double>(moved) / std::chrono::duration<double>(elapsed).count();
    const double old = rate_.load(std::memory_order_relaxed);
    rate_.store(old == 0 ? rate : old * 0.7 + rate * 0.3, std::memory_order_relaxed);
  }
  window_start_ = now;
  window_bytes_ = total;
}

void Connection::send_ping(Clock::time_point now) {
  next_ping_ = now + options_.ping_after;
  base::MutexLock lock(mu_);
  if (closed_) return;
  const std::uint64_t number = ++pings_;
  queue_.push_small(FrameType::kPing, 0, std::as_bytes(std::span(&number, 1)));
  wake_.notify_one();
  // One ping is timed at a time: an answer that takes longer than the interval still counts.
  if (ping_awaited_ == 0) {
    ping_awaited_ = number;
    ping_sent_ = now;
  }
}

base::Result<void> Connection::handle_pong(const Frame& frame) {
  std::uint64_t number = 0;
  wire::Reader reader(frame.payload);
  reader.num(number);
  if (!reader.done()) return base::errno_error(EPROTO, "malformed pong");
  {
    base::MutexLock lock(mu_);
    if (number == 0 || number > pings_) return base::errno_error(EPROTO, "pong without a ping");
    newest_pong_ = std::max(newest_pong_, number);
    ponged_.notify_all();
  }
  if (number == ping_awaited_) {
    ping_awaited_ = 0;
    const auto us =
        std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - ping_sent_).count() + 1;
    const auto old = rtt_us_.load(std::memory_order_relaxed);
    rtt_us_.store(old == 0 ? us : (7 * old + us) / 8, std::memory_order_relaxed);
  }
  owner_.on_pong(*this, number);
  return {};
}

base::Result<void> Connection::handle(const Frame& frame) {
  switch (frame.head.type) {
    case FrameType::kChunk:
      return owner_.on_chunk(*this, frame.head.call_id, frame.payload);
    case FrameType::kEnd: {
      auto whole = assembler_.add(frame);
      if (!whole) return std::move(whole).error();
      if (!*whole) return {};
      return owner_.on_end(*this, frame.head.call_id, frame.head.code, **whole);
    }
    case FrameType::kPing: {
      if (frame.payload.size() != sizeof(std::uint64_t)) return base::errno_error(EPROTO, "malformed ping");
      base::MutexLock lock(mu_);
      // The socket takes nothing: the agent hears no answer anyway, and a flood must not fill memory.
      if (queue_.small_bytes() > kMaxQueuedForPong) return {};
      queue_.push_small(FrameType::kPong, 0, frame.payload);
      wake_.notify_one();
      return {};
    }
    case FrameType::kPong:
      return handle_pong(frame);
    default:
      return base::errno_error(EPROTO, "a frame that an agent does not send");
  }
}

}  // namespace nearbox::channel
