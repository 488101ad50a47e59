// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "client/api/agent_link.h"

namespace nearbox::sync::test {

using namespace std::chrono_literals;

// Waits until `done` says true; false after a long time.
inline bool eventually(const std::function<bool()>& done, std::chrono::milliseconds limit = 20s) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

// An AgentLink whose agent is the test: handlers answer calls, with chunks cut at random places, and
// the link is lost when asked or at random between two chunks.
//
// Owns:    one thread, the link thread: handlers, sinks and observers run on it.
// Threads: methods marked (link) from a handler or post()ed function alone; the rest from any.
class FakeLink : public api::AgentLink {
 public:
  using Handler = std::function<void(api::CallToken, const wire::Bytes&)>;
  using NoteHandler = std::function<void(const wire::Bytes&)>;

  explicit FakeLink(std::uint64_t seed)
      : rng_(seed), thread_([this](const std::stop_token& stop) { run(stop); }) {}
  ~FakeLink() override { stop(); }
  // No handler runs afterwards: call it before what they use is destroyed.
  void stop() {
    if (!thread_.joinable()) return;
    thread_.request_stop();
    thread_.join();
    for (auto& [token, call] : calls_) call.sink->on_end(ESHUTDOWN, {});
    calls_.clear();
  }

  // ---- the test's side
  void serve(wire::Method method, Handler handler) {
    do_now([this, method, handler = std::move(handler)] { handlers_[method] = handler; });
  }
  void serve_note(wire::Method method, NoteHandler handler) {
    do_now([this, method, handler = std::move(handler)] { note_handlers_[method] = handler; });
  }
  void post(std::function<void()> fn) {
    const std::lock_guard lock(mu_);
    tasks_.push_back(std::move(fn));
    wake_.notify_all();
  }
  void do_now(const std::function<void()>& fn) {  // and waits for it
    std::mutex mu;
    std::condition_variable ready;
    bool done = false;
    post([&] {
      fn();
      const std::lock_guard lock(mu);
      done = true;
      ready.notify_all();
    });
    std::unique_lock lock(mu);
    ready.wait(lock, [&] { return done; });
  }
  void connect(std::uint64_t instance, bool same) {
    do_now([this, instance, same] { up(instance, same); });
  }
  void lose() {
    do_now([this] { down(); });
  }
  // Takes notes for the new connection, as the link does before its observers know of it; connect() is next.
  void accept_notes() {
    do_now([this] { notes_early_ = true; });
  }
  void lose_at_random(int times) {
    do_now([this, times] { losses_ = times; });
  }
  std::size_t granted(api::CallToken token) {  // beyond the call's own credit
    const std::lock_guard lock(mu_);
    return granted_[token];
  }
  std::size_t calls_made(wire::Method method) {
    const std::lock_guard lock(mu_);
    return made_[method];
  }

  // (link) False when the call is no longer on the wire: the handler gives up.
  bool chunk(api::CallToken token, wire::ByteView bytes) {
    while (!bytes.empty()) {
      if (!on_wire(token)) return false;
      const auto most = std::min<std::size_t>(bytes.size(), rng_() % 3 == 0 ? 7 : 32 * 1024);
      const auto size = 1 + rng_() % most;
      sink_of(token)->on_chunk(bytes.first(size));
      bytes = bytes.subspan(size);
      if (losses_ > 0 && rng_() % 4 == 0) {
        --losses_;
        const auto instance = instance_;
        down();
        post([this, instance] { up(instance, true); });
      }
    }
    return on_wire(token);
  }
  // (link)
  void end(api::CallToken token, int error, const wire::Bytes& payload = {}) {
    std::unique_ptr<api::CallSink> sink;
    {
      const std::lock_guard lock(mu_);
      const auto found = calls_.find(token);
      if (found == calls_.end()) return;
      sink = std::move(found->second.sink);
      wires_.erase(token);
      calls_.erase(found);
    }
    sink->on_end(error, payload);
  }
  // (link)
  bool on_wire(api::CallToken token) {
    const std::lock_guard lock(mu_);
    return wires_.contains(token);
  }

  // ---- the link's side
  api::CallToken call(wire::Method method, wire::Bytes payload, std::unique_ptr<api::CallSink> sink,
                      const api::CallOptions& options) override {
    const std::lock_guard lock(mu_);
    const auto token = next_++;
    ++made_[method];
    calls_.emplace(token, Call{method, std::move(payload), std::move(sink), options});
    tasks_.push_back([this, token] { start(token); });
    wake_.notify_all();
    return token;
  }
  void cancel(api::CallToken token) override {
    post([this, token] { end(token, ECANCELED); });
  }
  void grant(api::CallToken token, std::uint32_t bytes) override {
    const std::lock_guard lock(mu_);
    granted_[token] += bytes;
  }
  void note(wire::Method method, wire::Bytes payload, api::Lane) override {
    post([this, method, payload = std::move(payload)] {
      if ((up_ || notes_early_) && note_handlers_.contains(method)) note_handlers_.at(method)(payload);
    });
  }
  std::uint32_t wire_id(api::CallToken token) override {
    const std::lock_guard lock(mu_);
    return wires_.contains(token) ? static_cast<std::uint32_t>(token) : 0;
  }
  void renew_session() override { ++renewals; }
  std::atomic<int> renewals{0};
  api::LinkStatus status() const override {
    api::LinkStatus now;
    now.up = up_;
    return now;
  }
  void add_observer(api::LinkObserver* observer) override {
    do_now([this, observer] {
      observers_.insert(observer);
      if (up_) observer->on_up(welcome(), false);
    });
  }
  void remove_observer(api::LinkObserver* observer) override {
    if (std::this_thread::get_id() == thread_.get_id()) {
      observers_.erase(observer);
    } else {
      do_now([this, observer] { observers_.erase(observer); });
    }
  }

 private:
  struct Call {
    wire::Method method{};
    wire::Bytes payload;
    std::unique_ptr<api::CallSink> sink;
    api::CallOptions options;
  };

  wire::Welcome welcome() const {
    wire::Welcome w;
    w.instance = instance_;
    return w;
  }
  void start(api::CallToken token) {
    wire::Bytes payload;
    wire::Method method{};
    {
      const std::lock_guard lock(mu_);
      const auto found = calls_.find(token);
      if (found == calls_.end() || !up_ || wires_.contains(token)) return;
      wires_.insert(token);
      method = found->second.method;
      payload = found->second.payload;
    }
    if (handlers_.contains(method)) handlers_.at(method)(token, payload);
  }
  void up(std::uint64_t instance, bool same) {
    if (up_) down();
    instance_ = instance;
    up_ = true;
    notes_early_ = false;
    std::vector<api::CallToken> waiting;
    {
      const std::lock_guard lock(mu_);
      for (const auto& [token, call] : calls_) waiting.push_back(token);
    }
    for (auto* observer : std::set<api::LinkObserver*>(observers_)) observer->on_up(welcome(), same);
    for (const auto token : waiting) {
      const auto method = method_of(token);
      const bool fits = method == wire::Method::kRootOpen || method == wire::Method::kSubscribe;
      if (!same && !fits && was_sent_.contains(token)) {
        end(token, ECONNRESET);
      } else {
        post([this, token] { start(token); });
      }
    }
  }
  void down() {
    if (!up_) return;
    up_ = false;
    std::set<api::CallToken> lost;
    {
      const std::lock_guard lock(mu_);
      lost.swap(wires_);
    }
    for (const auto token : lost) {
      was_sent_.insert(token);
      auto payload = sink_of(token)->on_lost();
      if (payload) {
        const std::lock_guard lock(mu_);
        calls_.at(token).payload = std::move(*payload);
      } else {
        end(token, ECONNRESET);
      }
    }
    for (auto* observer : std::set<api::LinkObserver*>(observers_))
      observer->on_down(base::errno_error(ECONNRESET));
  }
  // Of a call that is there; the link thread alone ends calls, so that the sink stays.
  api::CallSink* sink_of(api::CallToken token) {
    const std::lock_guard lock(mu_);
    return calls_.at(token).sink.get();
  }
  wire::Method method_of(api::CallToken token) {
    const std::lock_guard lock(mu_);
    const auto found = calls_.find(token);
    return found == calls_.end() ? wire::Method{} : found->second.method;
  }
  void run(const std::stop_token& stop) {
    std::unique_lock lock(mu_);
    while (!stop.stop_requested()) {
      wake_.wait_for(lock, stop, 5ms, [this] { return !tasks_.empty(); });
      if (tasks_.empty()) {
        std::vector<api::CallToken> late;
        for (const auto& [token, call] : calls_) {
          if (!call.options.no_deadline && call.options.deadline < std::chrono::steady_clock::now())
            late.push_back(token);
        }
        lock.unlock();
        for (const auto token : late) end(token, ETIMEDOUT);
        lock.lock();
        continue;
      }
      auto task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
    }
  }

  std::mutex mu_;
  std::condition_variable_any wake_;
  std::deque<std::function<void()>> tasks_;
  std::map<api::CallToken, Call> calls_;
  std::set<api::CallToken> wires_;
  std::map<wire::Method, std::size_t> made_;
  std::map<api::CallToken, std::size_t> granted_;
  api::CallToken next_ = 1;
  // Of the link thread alone:
  std::mt19937_64 rng_;
  std::map<wire::Method, Handler> handlers_;
  std::map<wire::Method, NoteHandler> note_handlers_;
  std::set<api::LinkObserver*> observers_;
  std::set<api::CallToken> was_sent_;
  std::uint64_t instance_ = 0;
  std::atomic<bool> up_{false};
  bool notes_early_ = false;
  int losses_ = 0;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace nearbox::sync::test
