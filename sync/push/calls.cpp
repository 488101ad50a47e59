// SPDX-License-Identifier: Apache-2.0
#include "sync/push/calls.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <utility>

namespace nearbox::push {
namespace {
constexpr std::chrono::milliseconds kStopLook{200};  // how soon a wait sees that the push is stopped
}  // namespace

struct Calls::Shared {
  struct Done {
    Answer answer;
    int error;
    wire::Bytes payload;
  };
  base::Mutex mu;  // rank: leaf
  base::CondVar room;
  base::CondVar news;
  std::map<std::uint64_t, api::CallToken> open
      GUARDED_BY(mu);  // by our number; 0: its token is not known yet
  std::uint64_t next GUARDED_BY(mu) = 0;
  std::size_t bytes GUARDED_BY(mu) = 0;
  std::deque<Done> done GUARDED_BY(mu);
  bool stopped GUARDED_BY(mu) = false;
  std::uint64_t made GUARDED_BY(mu) = 0;
  std::uint64_t out GUARDED_BY(mu) = 0;
  std::uint64_t in GUARDED_BY(mu) = 0;
  // The rate is taken over spans in which the window is full.
  std::optional<Clock::time_point> full_since GUARDED_BY(mu);
  std::uint64_t acked_full GUARDED_BY(mu) = 0;
  double seconds_full GUARDED_BY(mu) = 0;

  bool has_room_locked(std::size_t more) const REQUIRES(mu) {
    return open.empty() || (open.size() < kWindowCalls && bytes + more <= kWindowBytes);
  }
  void note_window_locked(std::size_t acked) REQUIRES(mu) {
    const bool full = bytes * 2 > kWindowBytes || open.size() + 2 >= kWindowCalls;
    const auto now = Clock::now();
    if (full_since) {
      seconds_full += std::chrono::duration<double>(now - *full_since).count();
      acked_full += acked;
    }
    full_since = full ? std::optional(now) : std::nullopt;
  }
};

// One call's end of the link.
class Calls::Sink : public api::CallSink {
 public:
  Sink(std::shared_ptr<Shared> shared, std::uint64_t number, std::shared_ptr<const wire::Bytes> again,
       Answer answer, Chunk chunk)
      : shared_(std::move(shared)),
        number_(number),
        again_(std::move(again)),
        answer_(std::move(answer)),
        chunk_(std::move(chunk)) {}

  void on_chunk(wire::ByteView bytes) noexcept override {
    {
      base::MutexLock lock(shared_->mu);
      shared_->in += bytes.size();
    }
    if (chunk_) chunk_(bytes);
  }
  void on_end(int error, wire::ByteView payload) noexcept override {
    base::MutexLock lock(shared_->mu);
    shared_->open.erase(number_);
    shared_->bytes -= std::min(shared_->bytes, again_->size());
    shared_->note_window_locked(again_->size());
    shared_->in += payload.size();
    shared_->done.push_back({std::move(answer_), error, wire::Bytes(payload.begin(), payload.end())});
    shared_->room.notify_all();
    shared_->news.notify_all();
  }
  std::optional<wire::Bytes> on_lost() noexcept override {
    if (chunk_) return std::nullopt;  // what came of a stream would come twice
    base::MutexLock lock(shared_->mu);
    shared_->out += again_->size();
    return *again_;
  }

 private:
  std::shared_ptr<Shared> shared_;
  std::uint64_t number_;
  std::shared_ptr<const wire::Bytes> again_;
  Answer answer_;
  Chunk chunk_;
};

Calls::Calls(api::AgentLink& link) : shared_(std::make_shared<Shared>()), link_(link) {}

Calls::~Calls() {
  stop();
  std::vector<api::CallToken> tokens;
  {
    base::MutexLock lock(shared_->mu);
    for (const auto& [number, token] : shared_->open) tokens.push_back(token);
    shared_->done.clear();
  }
  for (const auto token : tokens) link_.cancel(token);
}

bool Calls::send(wire::Method method, wire::Bytes payload, Answer answer) {
  std::uint64_t number = 0;
  const auto again = std::make_shared<const wire::Bytes>(payload);
  const auto deadline = Clock::now() + kCallDeadline;
  {
    base::MutexLock lock(shared_->mu);
    while (!shared_->stopped && !shared_->has_room_locked(payload.size()) && Clock::now() < deadline) {
      (void)shared_->room.wait_until(shared_->mu, deadline);  // calls end by their deadline
    }
    if (shared_->stopped) return false;
    number = ++shared_->next;
    shared_->open.emplace(number, 0);
    shared_->bytes += payload.size();
    shared_->note_window_locked(0);
    ++shared_->made;
    shared_->out += payload.size();
  }
  api::CallOptions options;
  options.deadline = Clock::now() + kCallDeadline;
  options.lane = api::Lane::kBulk;
  const auto token =
      link_.call(method, std::move(payload),
                 std::make_unique<Sink>(shared_, number, again, std::move(answer), Chunk()), options);
  base::MutexLock lock(shared_->mu);
  const auto found = shared_->open.find(number);
  if (found != shared_->open.end()) found->second = token;
  return true;
}

void Calls::step(std::chrono::milliseconds wait) {
  std::deque<Shared::Done> done;
  {
    base::MutexLock lock(shared_->mu);
    const auto limit = Clock::now() + wait;
    while (shared_->done.empty() && shared_->news.wait_until(shared_->mu, limit)) {
    }
    done.swap(shared_->done);
  }
  for (auto& one : done) {
    if (one.answer) one.answer(one.error, std::move(one.payload));
  }
}

void Calls::post(std::function<void()> what) {
  base::MutexLock lock(shared_->mu);
  shared_->done.push_back({[what = std::move(what)](int, const wire::Bytes&) { what(); }, 0, {}});
  shared_->news.notify_all();
}

void Calls::stop() {
  base::MutexLock lock(shared_->mu);
  shared_->stopped = true;
  shared_->room.notify_all();
  shared_->news.notify_all();
}

Calls::Reply Calls::sync(wire::Method method, wire::Bytes payload, Chunk chunk) {
  // A shared end of its own: answers of others run on other threads.
  struct Ended {
    base::Mutex mu;  // rank: leaf
    base::CondVar cv;
    bool ended GUARDED_BY(mu) = false;
    Reply reply GUARDED_BY(mu);
  };
  class OneSink : public api::CallSink {
   public:
    OneSink(std::shared_ptr<Ended> ended, std::shared_ptr<Shared> shared, wire::Bytes again, Chunk chunk)
        : ended_(std::move(ended)),
          shared_(std::move(shared)),
          again_(std::move(again)),
          chunk_(std::move(chunk)) {}
    void on_chunk(wire::ByteView bytes) noexcept override {
      {
        base::MutexLock lock(shared_->mu);
        shared_->in += bytes.size();
      }
      if (chunk_) chunk_(bytes);
    }
    void on_end(int error, wire::ByteView bytes) noexcept override {
      base::MutexLock lock(ended_->mu);
      ended_->ended = true;
      ended_->reply = {error, wire::Bytes(bytes.begin(), bytes.end())};
      ended_->cv.notify_all();
    }
    std::optional<wire::Bytes> on_lost() noexcept override {
      if (chunk_) return std::nullopt;
      return again_;
    }

   private:
    std::shared_ptr<Ended> ended_;
    std::shared_ptr<Shared> shared_;
    wire::Bytes again_;
    Chunk chunk_;
  };
  {
    base::MutexLock lock(shared_->mu);
    if (shared_->stopped) return {ECANCELED, {}};
    ++shared_->made;
    shared_->out += payload.size();
  }
  auto ended = std::make_shared<Ended>();
  api::CallOptions options;
  options.deadline = Clock::now() + kCallDeadline;
  options.lane = api::Lane::kBulk;
  auto again = payload;
  link_.call(method, std::move(payload),
             std::make_unique<OneSink>(ended, shared_, std::move(again), std::move(chunk)), options);
  // The link ends each call at its deadline; the minute more is for its own scheduling.
  const auto limit = options.deadline + std::chrono::minutes(1);
  while (true) {
    {
      base::MutexLock lock(ended->mu);
      if (!ended->ended) (void)ended->cv.wait_until(ended->mu, Clock::now() + kStopLook);
      if (ended->ended) return std::move(ended->reply);
    }
    if (stopped()) return {ECANCELED, {}};
    if (Clock::now() > limit) return {ETIMEDOUT, {}};
  }
}

std::size_t Calls::under_way() const {
  base::MutexLock lock(shared_->mu);
  return shared_->open.size() + shared_->done.size();
}
bool Calls::stopped() const {
  base::MutexLock lock(shared_->mu);
  return shared_->stopped;
}
std::uint64_t Calls::made() const {
  base::MutexLock lock(shared_->mu);
  return shared_->made;
}
std::uint64_t Calls::bytes_out() const {
  base::MutexLock lock(shared_->mu);
  return shared_->out;
}
std::uint64_t Calls::bytes_in() const {
  base::MutexLock lock(shared_->mu);
  return shared_->in;
}
double Calls::rate() const {
  base::MutexLock lock(shared_->mu);
  return shared_->seconds_full > 0.05 ? static_cast<double>(shared_->acked_full) / shared_->seconds_full : 0;
}

}  // namespace nearbox::push
