// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <poll.h>
#include <string>
#include <sys/socket.h>
#include <thread>
#include <utility>
#include <vector>

#include "client/base/mutex.h"
#include "client/channel/agent_link_impl.h"
#include "client/channel/fd_carrier.h"
#include "client/channel/mux_server.h"

namespace nearbox::test {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

inline Clock::time_point soon() { return Clock::now() + std::chrono::seconds(20); }

// Waits until `condition` holds; false when it did not within `limit`.
template <class F>
bool eventually(F&& condition, std::chrono::milliseconds limit = std::chrono::seconds(20)) {
  const auto end = Clock::now() + limit;
  while (!condition()) {
    if (Clock::now() >= end) return false;
    (void)::poll(nullptr, 0, 1);
  }
  return true;
}

inline std::pair<base::UniqueFd, base::UniqueFd> socket_pair() {
  int fds[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  return {base::UniqueFd(fds[0]), base::UniqueFd(fds[1])};
}

inline std::unique_ptr<channel::Carrier> carrier_of(base::UniqueFd fd) {
  auto carrier = channel::FdCarrier::from_socket(std::move(fd));
  if (!carrier) std::abort();
  return std::move(*carrier);
}

inline wire::Bytes bytes_of(std::string_view text) {
  const auto view = wire::as_view(text);
  return {view.begin(), view.end()};
}

// The byte of a made-up stream at a position, so that any loss or repetition shows.
inline std::byte pattern(std::uint64_t at) {
  at *= 0x9e3779b97f4a7c15ULL;
  return static_cast<std::byte>(at >> 56);
}

// What a call got. Thread-safe; on_end is waited for with wait().
struct Outcome {
  wire::Bytes bytes;
  std::optional<int> error;
  std::string payload;
  int lost = 0;
  base::Mutex mu;
  base::CondVar cv;

  bool wait(std::chrono::milliseconds limit = std::chrono::seconds(20)) {
    base::MutexLock lock(mu);
    const auto end = Clock::now() + limit;
    while (!error) {
      if (Clock::now() >= end) return false;
      cv.wait_until(mu, end);
    }
    return true;
  }
  std::size_t size() {
    base::MutexLock lock(mu);
    return bytes.size();
  }
};
using OutcomePtr = std::shared_ptr<Outcome>;

class OutcomeSink : public api::CallSink {
 public:
  using Resume = std::function<std::optional<wire::Bytes>(Outcome&)>;
  explicit OutcomeSink(OutcomePtr out, Resume resume = {})
      : out_(std::move(out)), resume_(std::move(resume)) {}
  void on_chunk(wire::ByteView bytes) noexcept override {
    base::MutexLock lock(out_->mu);
    out_->bytes.insert(out_->bytes.end(), bytes.begin(), bytes.end());
    out_->cv.notify_all();
  }
  void on_end(int error, wire::ByteView payload) noexcept override {
    base::MutexLock lock(out_->mu);
    out_->error = error;
    out_->payload = wire::as_text(payload);
    out_->cv.notify_all();
  }
  std::optional<wire::Bytes> on_lost() noexcept override {
    base::MutexLock lock(out_->mu);
    ++out_->lost;
    return resume_ ? resume_(*out_) : std::nullopt;
  }

 private:
  const OutcomePtr out_;
  const Resume resume_;
};

// An agent in this process: serves every connection that its dial() hands out.
//
// Methods: kInfo echoes its payload; kRead (payload: offset u64, length u64) streams the pattern and
// ends with "end"; kProcAttach streams the pattern from the offset and does not end before
// finish_streams(); kStatFs never answers; kRootOpen answers a message of the size asked for (u32).
class TestAgent {
 public:
  TestAgent() = default;
  ~TestAgent() { stop(); }
  TestAgent(const TestAgent&) = delete;
  TestAgent& operator=(const TestAgent&) = delete;

  channel::LinkConfig config() {
    channel::LinkConfig config;
    config.dial = [this](wire::Role role, channel::Deadline) { return dial(role); };
    config.backoff_min = milliseconds(1);
    config.backoff_max = milliseconds(20);
    config.build = "test";
    return config;
  }

  base::Result<channel::Dialled> dial(wire::Role role) {
    base::MutexLock lock(mu_);
    ++dials_[role];
    if (down_ || (role == wire::Role::kBulk && bulk_down_)) return base::errno_error(ECONNREFUSED, "test");
    auto [ours, theirs] = socket_pair();
    raw_.push_back(::dup(theirs.get()));
    auto carrier = std::shared_ptr<channel::Carrier>(carrier_of(std::move(theirs)));
    carriers_.push_back(carrier);
    threads_.emplace_back([this, carrier, raw = raw_.back()] { serve(*carrier, raw); });
    auto mine = carrier_of(std::move(ours));
    return channel::Dialled{wrap ? wrap(role, std::move(mine)) : std::move(mine), token};
  }

  // Cuts every connection there is.
  void cut() {
    base::MutexLock lock(mu_);
    for (const int fd : raw_) ::shutdown(fd, SHUT_RDWR);
  }
  void cut(wire::Role role) {
    base::MutexLock lock(mu_);
    for (const int fd : raw_of_[role]) ::shutdown(fd, SHUT_RDWR);
  }
  void set_down(bool down) {
    base::MutexLock lock(mu_);
    down_ = down;
  }
  void set_bulk_down(bool down) {
    base::MutexLock lock(mu_);
    bulk_down_ = down;
  }
  // Another agent process: nothing of the sessions is known.
  void restart() {
    base::MutexLock lock(mu_);
    ++instance_;
    sessions_.clear();
    nonce_ = 0;
  }
  void set_nonce(std::uint64_t nonce) {
    base::MutexLock lock(mu_);
    nonce_ = nonce;
  }
  std::uint64_t nonce() {
    base::MutexLock lock(mu_);
    return nonce_;
  }
  int dials(wire::Role role) {
    base::MutexLock lock(mu_);
    return dials_[role];
  }
  std::vector<std::pair<wire::Method, std::string>> notes() {
    base::MutexLock lock(mu_);
    return notes_;
  }
  int notes_on(wire::Role role) {
    base::MutexLock lock(mu_);
    return notes_on_[role];
  }
  void finish_streams() { finished_ = true; }
  void stop() {
    finished_ = true;
    {
      base::MutexLock lock(mu_);
      down_ = true;
      for (const auto& carrier : carriers_) carrier->shutdown();
    }
    while (true) {
      std::jthread thread;
      base::MutexLock lock(mu_);
      if (threads_.empty()) break;
      thread = std::move(threads_.front());
      threads_.pop_front();
      joining_.push_back(std::move(thread));
    }
    joining_.clear();
    for (const int fd : raw_) ::close(fd);
    raw_.clear();
  }

  std::function<std::unique_ptr<channel::Carrier>(wire::Role, std::unique_ptr<channel::Carrier>)> wrap;
  std::function<void(wire::Method, const std::string&)> on_note;
  wire::Token token{};
  wire::Token accepted_token{};
  channel::ServeOptions serve_options;
  base::Logger log{2, base::LogLevel::kOff};
  std::atomic<int> cancelled{0};
  std::atomic<std::uint64_t> sent{0};  // chunk bytes that send() took
  std::atomic<int> live_calls{0};      // kStatFs under way

 private:
  class Handler : public channel::CallHandler {
   public:
    Handler(TestAgent& agent, wire::Role role) : agent_(agent), role_(role) {}
    void on_call(wire::Method method, wire::ByteView payload, channel::ResponderPtr responder) override {
      agent_.answer(*this, method, payload, std::move(responder));
    }
    void on_note(wire::Method method, wire::ByteView payload) override {
      const std::string text(wire::as_text(payload));
      {
        base::MutexLock lock(agent_.mu_);
        agent_.notes_.emplace_back(method, text);
        ++agent_.notes_on_[role_];
        if (method == wire::Method::kConfirm) {
          if (auto confirm = wire::decode<wire::Confirm>(payload)) agent_.nonce_ = confirm->nonce;
        }
      }
      if (agent_.on_note) agent_.on_note(method, text);
    }
    void on_cancel(std::uint32_t) override { ++agent_.cancelled; }
    std::vector<channel::ResponderPtr> kept;
    std::vector<std::jthread> workers;

   private:
    TestAgent& agent_;
    const wire::Role role_;
  };

  void serve(channel::Carrier& carrier, int raw) {
    auto hello = channel::read_hello(carrier, soon());
    if (!hello) return;
    wire::Welcome welcome;
    {
      base::MutexLock lock(mu_);
      if (hello->token != accepted_token) {
        (void)channel::send_refused(carrier, wire::Refused{EACCES, "wrong token"}, soon());
        return;
      }
      welcome.instance = instance_;
      auto& known = sessions_[hello->session];
      welcome.resumed = known;
      welcome.nonce = known ? nonce_ : 0;
      known = true;
      raw_of_[hello->role].push_back(raw);
    }
    if (!channel::send_welcome(carrier, welcome, soon())) return;
    Handler handler(*this, hello->role);
    (void)channel::serve_connection(carrier, handler, serve_options, log);
    carrier.shutdown();
    live_calls -= static_cast<int>(handler.kept.size());
  }

  void answer(Handler& handler, wire::Method method, wire::ByteView payload,
              channel::ResponderPtr responder) {
    wire::Reader reader(payload);
    if (method == wire::Method::kInfo) {
      responder->end(0, payload);
    } else if (method == wire::Method::kRootOpen) {
      std::uint32_t size = 0;
      reader.num(size);
      responder->end(0, wire::Bytes(size, std::byte{'x'}));
    } else if (method == wire::Method::kStatFs) {
      ++live_calls;
      handler.kept.push_back(std::move(responder));
    } else if (method == wire::Method::kRead || method == wire::Method::kProcAttach) {
      std::uint64_t offset = 0;
      std::uint64_t length = 0;
      reader.num(offset), reader.num(length);
      const bool endless = method == wire::Method::kProcAttach;
      handler.workers.emplace_back(
          [this, offset, length, endless, r = std::move(responder)] { stream(*r, offset, length, endless); });
    } else {
      responder->end(ENOSYS);
    }
  }

  void stream(channel::Responder& responder, std::uint64_t offset, std::uint64_t length, bool endless) {
    const auto end = offset + length;
    while (offset < end && !(endless && finished_)) {
      wire::Bytes piece(std::min<std::uint64_t>(end - offset, 50'000));
      for (std::size_t i = 0; i < piece.size(); ++i) piece[i] = pattern(offset + i);
      if (!responder.send(piece)) return;
      sent += piece.size();
      offset += piece.size();
    }
    responder.end(0, wire::as_view("end"));
  }

  base::Mutex mu_;
  bool down_ = false;
  bool bulk_down_ = false;
  std::uint64_t instance_ = 1;
  std::uint64_t nonce_ = 0;
  std::map<wire::SessionId, bool> sessions_;
  std::map<wire::Role, int> dials_;
  std::map<wire::Role, std::vector<int>> raw_of_;
  std::vector<int> raw_;
  std::vector<std::shared_ptr<channel::Carrier>> carriers_;
  std::deque<std::jthread> threads_;
  std::vector<std::jthread> joining_;
  std::vector<std::pair<wire::Method, std::string>> notes_;
  std::map<wire::Role, int> notes_on_;
  std::atomic<bool> finished_{false};
};

inline wire::Bytes range(std::uint64_t offset, std::uint64_t length) {
  wire::Bytes out;
  wire::Writer writer(out);
  writer.num(offset), writer.num(length);
  return out;
}

inline api::CallOptions options(std::chrono::milliseconds timeout = std::chrono::seconds(20)) {
  api::CallOptions o;
  o.deadline = Clock::now() + timeout;
  return o;
}

inline OutcomePtr start(api::AgentLink& link, wire::Method method, wire::Bytes payload,
                        const api::CallOptions& o = options(), OutcomeSink::Resume resume = {},
                        api::CallToken* token = nullptr) {
  auto out = std::make_shared<Outcome>();
  const auto t =
      link.call(method, std::move(payload), std::make_unique<OutcomeSink>(out, std::move(resume)), o);
  if (token != nullptr) *token = t;
  return out;
}

}  // namespace nearbox::test
