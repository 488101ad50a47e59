// SPDX-License-Identifier: Apache-2.0
#include "client/channel/mux_server.h"

#include <algorithm>
#include <pthread.h>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "client/base/mutex.h"
#include "client/channel/frame.h"
#include "client/channel/frame_queue.h"

namespace nearbox::channel {
namespace {

using Clock = std::chrono::steady_clock;
using wire::FrameType;

// Bytes of chunks waiting for the socket: of one call, of the connection. Responder::send waits.
constexpr std::size_t kMaxQueuedPerCall = 256 * 1024;
constexpr std::size_t kMaxQueuedChunks = 4 * 1024 * 1024;
// Pongs and small answers waiting: the reader takes nothing new above this.
constexpr std::size_t kReaderPauseBytes = 8 * 1024 * 1024;
// Answers waiting in all: the peer asks and does not read; the connection is given up.
constexpr std::size_t kMaxQueuedAnswers = 256 * 1024 * 1024;
// Longest one write may take; a dead peer is found by its silence, long before.
constexpr std::chrono::seconds kWriteTimeout{60};
// No wait is longer, so that a lost wake-up costs time, not life.
constexpr std::chrono::seconds kWaitStep{1};

// One call. Guarded by ServerConnection::mu_, but for `id`.
struct ServerCall {
  explicit ServerCall(std::uint32_t call_id) : id(call_id) {}
  const std::uint32_t id;
  std::uint64_t credit = 0;
  Clock::time_point deadline = Clock::time_point::max();
  bool cancelled = false;
  bool ended = false;
};

class ServerConnection final : public std::enable_shared_from_this<ServerConnection> {
 public:
  ServerConnection(Carrier& carrier, CallHandler& handler, const ServeOptions& options)
      : carrier_(carrier), handler_(handler), options_(options), reader_(carrier) {}

  base::Result<void> run() EXCLUDES(mu_);

  bool send(ServerCall& call, wire::ByteView bytes) EXCLUDES(mu_);
  void end(ServerCall& call, int error, wire::ByteView payload) EXCLUDES(mu_);
  bool cancelled(const ServerCall& call) EXCLUDES(mu_) {
    base::MutexLock lock(mu_);
    return call.cancelled;
  }

 private:
  void write_loop() noexcept EXCLUDES(mu_);
  base::Result<void> read_loop() EXCLUDES(mu_);
  base::Result<void> handle(const Frame& frame) EXCLUDES(mu_);
  base::Result<void> handle_call(const Frame& frame) EXCLUDES(mu_);
  base::Result<void> handle_credit(const Frame& frame) EXCLUDES(mu_);
  void handle_cancel(std::uint32_t id) EXCLUDES(mu_);
  Deadline tick(Clock::time_point now) EXCLUDES(mu_);
  base::Result<void> pause_while_peer_does_not_read() EXCLUDES(mu_);
  void close(const base::Error* why) EXCLUDES(mu_);
  bool end_locked(ServerCall& call, int error, wire::ByteView payload) REQUIRES(mu_);
  void push_small(FrameType type, wire::ByteView payload) EXCLUDES(mu_);

  Carrier& carrier_;      // reader and writer thread only: gone after run()
  CallHandler& handler_;  // reader thread only
  const ServeOptions options_;
  FrameReader reader_;  // reader thread
  Assembler assembler_;
  Clock::time_point next_ping_{};

  base::Mutex mu_;  // rank: leaf
  base::CondVar writer_wake_;
  base::CondVar space_;  // credit came, bytes went out, or a call is over
  FrameQueue queue_ GUARDED_BY(mu_);
  std::unordered_map<std::uint32_t, std::shared_ptr<ServerCall>> calls_ GUARDED_BY(mu_);
  std::set<std::pair<Clock::time_point, std::uint32_t>> deadlines_ GUARDED_BY(mu_);
  std::optional<base::Error> write_error_ GUARDED_BY(mu_);
  bool closed_ GUARDED_BY(mu_) = false;
};

class ResponderImpl final : public Responder {
 public:
  ResponderImpl(std::shared_ptr<ServerConnection> connection, std::shared_ptr<ServerCall> call)
      : connection_(std::move(connection)), call_(std::move(call)) {}
  ~ResponderImpl() override { connection_->end(*call_, ECANCELED, {}); }
  ResponderImpl(const ResponderImpl&) = delete;
  ResponderImpl& operator=(const ResponderImpl&) = delete;

  bool send(wire::ByteView bytes) override { return connection_->send(*call_, bytes); }
  void end(int error, wire::ByteView payload) override { connection_->end(*call_, error, payload); }
  bool cancelled() const override { return connection_->cancelled(*call_); }
  std::uint32_t call_id() const override { return call_->id; }

 private:
  const std::shared_ptr<ServerConnection> connection_;
  const std::shared_ptr<ServerCall> call_;
};

bool ServerConnection::send(ServerCall& call, wire::ByteView bytes) {
  const auto stream = FrameQueue::call_stream(call.id);
  while (!bytes.empty()) {
    base::MutexLock lock(mu_);
    const auto go = [&]() REQUIRES(mu_) {
      return call.credit > 0 && queue_.stream_bytes(stream) < kMaxQueuedPerCall &&
             queue_.bulk_bytes() < kMaxQueuedChunks;
    };
    while (!closed_ && !call.ended && !call.cancelled && !go()) {
      const auto now = Clock::now();
      if (now >= call.deadline) return false;  // the reader ends it
      space_.wait_until(mu_, std::min(call.deadline, now + kWaitStep));
    }
    if (closed_ || call.ended || call.cancelled) return false;
    const auto size = std::min<std::uint64_t>({bytes.size(), call.credit, wire::kMaxFramePayload});
    const auto piece = bytes.first(size);
    call.credit -= size;
    queue_.push(stream, FrameType::kChunk, 0, call.id, wire::Bytes(piece.begin(), piece.end()),
                FrameQueue::Class::kBulk);
    bytes = bytes.subspan(size);
    writer_wake_.notify_one();
  }
  base::MutexLock lock(mu_);
  return !closed_ && !call.ended && !call.cancelled;
}

void ServerConnection::end(ServerCall& call, int error, wire::ByteView payload) {
  base::MutexLock lock(mu_);
  end_locked(call, error, payload);
}

bool ServerConnection::end_locked(ServerCall& call, int error, wire::ByteView payload) {
  if (call.ended) return false;
  call.ended = true;
  if (call.deadline != Clock::time_point::max()) deadlines_.erase({call.deadline, call.id});
  space_.notify_all();
  const auto id = call.id;
  calls_.erase(id);  // `call` lives on in its responder, or is not touched again
  if (closed_) return true;
  if (payload.size() > wire::kMaxMessage) {
    error = EMSGSIZE;
    payload = {};
  }
  if (error < 0 || error > 0xffff) error = EIO;
  queue_.push(FrameQueue::call_stream(id), FrameType::kEnd, static_cast<std::uint16_t>(error), id,
              wire::Bytes(payload.begin(), payload.end()));
  writer_wake_.notify_one();
  return true;
}

void ServerConnection::push_small(FrameType type, wire::ByteView payload) {
  base::MutexLock lock(mu_);
  queue_.push_small(type, 0, payload);
  writer_wake_.notify_one();
}

void ServerConnection::close(const base::Error* why) {
  {
    base::MutexLock lock(mu_);
    closed_ = true;
    if (why != nullptr) write_error_ = *why;
    queue_.clear();
    for (auto& [id, call] : calls_) call->cancelled = true;
    writer_wake_.notify_all();
    space_.notify_all();
  }
  carrier_.shutdown();
}

void ServerConnection::write_loop() noexcept {
  pthread_setname_np(pthread_self(), "conn-write");
  wire::Bytes out;
  while (true) {
    out.clear();
    {
      base::MutexLock lock(mu_);
      while (!closed_ && queue_.empty()) writer_wake_.wait_until(mu_, Clock::now() + base::kIdleWait);
      if (closed_) return;
      queue_.next(out);
      space_.notify_all();
    }
    const auto done = carrier_.write(out, Clock::now() + kWriteTimeout);
    if (!done) {
      close(&done.error());
      return;
    }
  }
}

// Ends what is past its deadline, sends the ping that is due; the time of the next such thing.
Deadline ServerConnection::tick(Clock::time_point now) {
  if (now >= next_ping_) {
    next_ping_ = now + options_.ping_after;
    const std::uint64_t payload = 0;
    push_small(FrameType::kPing, std::as_bytes(std::span(&payload, 1)));
  }
  Deadline next = std::min(next_ping_, reader_.last_byte() + options_.dead_after);
  std::vector<std::uint32_t> late;
  {
    base::MutexLock lock(mu_);
    while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
      const auto id = deadlines_.begin()->second;
      deadlines_.erase(deadlines_.begin());
      const auto call = calls_.at(id);
      call->cancelled = true;
      queue_.drop_chunks(FrameQueue::call_stream(id));
      end_locked(*call, ETIMEDOUT, {});
      late.push_back(id);
    }
    if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
  }
  for (const auto id : late) handler_.on_cancel(id);
  return next;
}

// A peer that asks without reading the answers: wait for it here, not with its answers in memory.
base::Result<void> ServerConnection::pause_while_peer_does_not_read() {
  base::MutexLock lock(mu_);
  const auto give_up = Clock::now() + options_.dead_after;
  while (!closed_ && queue_.small_bytes() > kReaderPauseBytes) {
    if (Clock::now() >= give_up) return base::errno_error(ENOBUFS, "the peer does not read its answers");
    space_.wait_until(mu_, std::min(give_up, Clock::now() + kWaitStep));
  }
  if (queue_.small_bytes() + queue_.bulk_bytes() > kMaxQueuedAnswers) {
    return base::errno_error(ENOBUFS, "too many answers wait for the peer");
  }
  return {};
}

base::Result<void> ServerConnection::read_loop() {
  while (true) {
    auto frame = reader_.next(tick(Clock::now()));
    if (!frame) {
      if (frame.error().as_errno() != ETIMEDOUT) return std::move(frame).error();
      if (Clock::now() - reader_.last_byte() >= options_.dead_after) {
        return base::errno_error(ETIMEDOUT, "the peer fell silent");
      }
      continue;
    }
    if (!*frame) return {};
    if (auto done = handle(**frame); !done) return done;
    if (auto done = pause_while_peer_does_not_read(); !done) return done;
  }
}

base::Result<void> ServerConnection::handle(const Frame& frame) {
  switch (frame.head.type) {
    case FrameType::kCall:
      return handle_call(frame);
    case FrameType::kNote: {
      auto whole = assembler_.add(frame);
      if (!whole) return std::move(whole).error();
      if (*whole) handler_.on_note(static_cast<wire::Method>(frame.head.code), **whole);
      return {};
    }
    case FrameType::kCredit:
      return handle_credit(frame);
    case FrameType::kCancel:
      handle_cancel(frame.head.call_id);
      return {};
    case FrameType::kPing:
      if (frame.payload.size() != sizeof(std::uint64_t)) return base::errno_error(EPROTO, "malformed ping");
      push_small(FrameType::kPong, frame.payload);
      return {};
    case FrameType::kPong:
      return {};
    default:
      return base::errno_error(EPROTO, "a frame that a client does not send");
  }
}

base::Result<void> ServerConnection::handle_call(const Frame& frame) {
  auto whole = assembler_.add(frame);
  if (!whole) return std::move(whole).error();
  if (!*whole) return {};
  wire::CallHead head;
  wire::Reader reader(**whole);
  fields(reader, head);
  if (!reader.ok()) return base::errno_error(EPROTO, "call without its head");
  if (head.credit > wire::kMaxCredit) return base::errno_error(EPROTO, "credit above the limit");
  const auto id = frame.head.call_id;
  auto call = std::make_shared<ServerCall>(id);
  {
    base::MutexLock lock(mu_);
    if (calls_.contains(id)) return base::errno_error(EPROTO, "call id in use");
    if (calls_.size() >= wire::kMaxCallsInFlight) {
      end_locked(*call, EAGAIN, {});
      return {};
    }
    call->credit = head.credit;
    if (head.deadline_ms != 0) {
      call->deadline = Clock::now() + std::chrono::milliseconds(head.deadline_ms);
      deadlines_.emplace(call->deadline, id);
    }
    if (closed_) return base::errno_error(ECONNABORTED, "connection closed");
    calls_.emplace(id, call);
  }
  auto responder = std::make_shared<ResponderImpl>(shared_from_this(), std::move(call));
  handler_.on_call(static_cast<wire::Method>(frame.head.code), reader.rest(), std::move(responder));
  return {};
}

base::Result<void> ServerConnection::handle_credit(const Frame& frame) {
  std::uint32_t more = 0;
  wire::Reader reader(frame.payload);
  reader.num(more);
  if (!reader.done()) return base::errno_error(EPROTO, "malformed credit");
  base::MutexLock lock(mu_);
  const auto it = calls_.find(frame.head.call_id);
  if (it == calls_.end()) return {};  // it ended while the credit was on its way
  it->second->credit += more;
  if (it->second->credit > wire::kMaxCredit) return base::errno_error(EPROTO, "credit above the limit");
  space_.notify_all();
  return {};
}

void ServerConnection::handle_cancel(std::uint32_t id) {
  {
    base::MutexLock lock(mu_);
    const auto it = calls_.find(id);
    if (it == calls_.end() || it->second->cancelled) return;
    it->second->cancelled = true;
    queue_.drop_chunks(FrameQueue::call_stream(id));
    space_.notify_all();
  }
  handler_.on_cancel(id);
}

base::Result<void> ServerConnection::run() {
  std::jthread writer([this] { write_loop(); });
  auto result = read_loop();
  close(nullptr);
  writer.join();
  std::vector<std::uint32_t> left;
  {
    base::MutexLock lock(mu_);
    for (const auto& [id, call] : calls_) left.push_back(id);
    // The reader only saw that somebody shut the carrier down: the writer knows why.
    if (!result && write_error_ && result.error().as_errno() == ECONNABORTED) result = *write_error_;
  }
  for (const auto id : left) handler_.on_cancel(id);
  return result;
}

}  // namespace

base::Result<void> serve_connection(Carrier& carrier, CallHandler& handler, const ServeOptions& options,
                                    base::Logger& log) {
  const auto connection = std::make_shared<ServerConnection>(carrier, handler, options);
  auto result = connection->run();
  if (!result) log.debug("event=connection_ended why=\"" + result.error().message() + "\"");
  return result;
}

}  // namespace nearbox::channel
