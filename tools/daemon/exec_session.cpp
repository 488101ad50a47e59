// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/exec_session.h"

#include <csignal>
#include <cstring>
#include <deque>
#include <poll.h>
#include <pthread.h>
#include <sys/random.h>
#include <thread>

#include "client/api/error_code.h"
#include "client/base/fault.h"
#include "client/base/mutex.h"
#include "tools/daemon/control_errors.h"
#include "tools/daemon/sync_call.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kWindow = 512 * 1024;
constexpr std::size_t kInputPiece = 64 * 1024;
constexpr std::size_t kInputWindow = 256 * 1024;
constexpr auto kClientWrite = 24h;  // a stopped terminal stops the command, as it does locally
constexpr auto kHangupGrace = 5s;
constexpr auto kNoticeDeadline = 60s;     // a signal waits this long for a link that is down
constexpr std::size_t kMaxNotices = 256;  // signals and resizes not answered; more are dropped
constexpr int kMaxIdleAnswers = 16;       // in a row that take no input

std::uint64_t random_id() {
  std::uint64_t id = 0;
  while (id == 0) {
    if (::getrandom(&id, sizeof id, 0) != sizeof id) id = 0;
  }
  return id;
}

std::vector<std::string> strings(const nlohmann::json& request, const char* key) {
  std::vector<std::string> out;
  if (const auto it = request.find(key); it != request.end() && it->is_array()) {
    for (const auto& item : *it) {
      if (item.is_string()) out.push_back(item.get<std::string>());
    }
  }
  return out;
}

}  // namespace

struct ExecSession::Impl {
  Impl(api::AgentLink& l, ControlConnection& c, std::string n, base::Logger& g)
      : link(l), client(c), name(std::move(n)), log(g) {}

  api::AgentLink& link;
  ControlConnection& client;
  const std::string name;  // of the sandbox, for errors
  base::Logger& log;
  std::uint64_t proc = 0;

  base::Mutex mu;  // rank: leaf; no link call is made under it
  base::CondVar cv;
  api::CallToken attach GUARDED_BY(mu) = 0;
  struct Output {
    wire::ProcOutput record;
    std::size_t wire_size = 0;  // what it cost of the call's credit
  };
  std::deque<Output> output GUARDED_BY(mu);
  wire::Bytes partial GUARDED_BY(mu);         // a record that has not wholly come
  std::uint64_t received GUARDED_BY(mu) = 0;  // output offset after the last whole record
  std::size_t owed GUARDED_BY(mu) = 0;        // credit of what came and was thrown away
  bool broken GUARDED_BY(mu) = false;         // the stream is none of records: nothing of it is used any more
  bool exited GUARDED_BY(mu) = false;
  bool ended GUARDED_BY(mu) = false;  // the attach call is over
  int end_error GUARDED_BY(mu) = 0;
  bool stop GUARDED_BY(mu) = false;
  wire::ProcOutput exit_record GUARDED_BY(mu);

  struct Input {
    std::string data;
    bool eof = false;
  };
  std::deque<Input> input GUARDED_BY(mu);  // the first one is under way when input_busy
  bool input_busy GUARDED_BY(mu) = false;
  std::uint64_t input_offset GUARDED_BY(mu) = 0;    // bytes the command has been given
  std::uint64_t input_taken GUARDED_BY(mu) = 0;     // … or never will be
  std::uint64_t input_reported GUARDED_BY(mu) = 0;  // … and the client was told of
  int input_idle GUARDED_BY(mu) = 0;                // answers in a row that took nothing
  bool input_closed GUARDED_BY(mu) = false;         // what still comes is thrown away
  int input_error GUARDED_BY(mu) = 0;               // the client is to be told
  std::size_t notices GUARDED_BY(mu) = 0;           // under way

  api::CallToken attach_to(const std::shared_ptr<Impl>& self, bool early) EXCLUDES(mu);
  bool attach_went_first() EXCLUDES(mu);
  void take_chunk(wire::ByteView bytes) EXCLUDES(mu);
  void take_records_locked() REQUIRES(mu);
  void pump(const SettleFn& settle) noexcept;
  bool write_output(const wire::ProcOutput& record);
  void queue_input(const std::shared_ptr<Impl>& self, std::string data, bool eof) EXCLUDES(mu);
  void next_input(const std::shared_ptr<Impl>& self) EXCLUDES(mu);
  void input_done(const std::shared_ptr<Impl>& self, const wire::ProcInput& sent, int error,
                  wire::ByteView payload) EXCLUDES(mu);
  bool input_advances_locked(const wire::ProcInput& sent, wire::ByteView payload) REQUIRES(mu);
  void close_input_locked() REQUIRES(mu);
  void tell_end(const SettleFn& settle) EXCLUDES(mu);
  void handle_control(const std::shared_ptr<Impl>& self, const nlohmann::json& message);
  void notify(const std::shared_ptr<Impl>& self, wire::Method method, wire::Bytes payload) EXCLUDES(mu);
  void hang_up(const std::shared_ptr<Impl>& self) EXCLUDES(mu);
};

namespace {

// Feeds an ExecSession from its attach call; shares its state, for the link may outlive the session.
template <class Impl>
class AttachSink : public api::CallSink {
 public:
  explicit AttachSink(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  void on_chunk(wire::ByteView bytes) noexcept override { impl_->take_chunk(bytes); }
  void on_end(int error, wire::ByteView) noexcept override {
    base::MutexLock lock(impl_->mu);
    impl_->ended = true;
    impl_->end_error = impl_->broken ? EPROTO : error;
    impl_->cv.notify_all();
  }
  std::optional<wire::Bytes> on_lost() noexcept override {
    base::MutexLock lock(impl_->mu);
    if (impl_->broken) return std::nullopt;
    impl_->owed += impl_->partial.size();
    impl_->partial.clear();
    impl_->cv.notify_all();
    const auto from = base::fault::active("daemon.no_output_offset") ? 0 : impl_->received;
    return wire::encode(wire::ProcAttach{impl_->proc, from, true, true});
  }

 private:
  std::shared_ptr<Impl> impl_;
};

// The end of one piece of input.
template <class Impl>
class InputSink : public api::CallSink {
 public:
  InputSink(std::shared_ptr<Impl> impl, wire::ProcInput sent)
      : impl_(std::move(impl)), sent_(std::move(sent)) {}
  void on_end(int error, wire::ByteView payload) noexcept override {
    impl_->input_done(impl_, sent_, error, payload);
  }
  std::optional<wire::Bytes> on_lost() noexcept override { return wire::encode(sent_); }

 private:
  std::shared_ptr<Impl> impl_;
  wire::ProcInput sent_;
};

// A call whose answer nobody waits for, sent again until it was answered: a signal may come twice then,
// but is not lost.
template <class Impl>
class NoticeSink : public api::CallSink {
 public:
  NoticeSink(std::shared_ptr<Impl> impl, wire::Bytes again)
      : impl_(std::move(impl)), again_(std::move(again)) {}
  void on_end(int, wire::ByteView) noexcept override {
    base::MutexLock lock(impl_->mu);
    --impl_->notices;
  }
  std::optional<wire::Bytes> on_lost() noexcept override { return again_; }

 private:
  std::shared_ptr<Impl> impl_;
  wire::Bytes again_;
};

std::string input_ended(int error) {
  return base::errno_error(error, "the command was given no more input").message();
}

}  // namespace

ExecSession::ExecSession(api::AgentLink& link, ControlConnection& client, std::string name, base::Logger& log)
    : impl_(std::make_shared<Impl>(link, client, std::move(name), log)) {}
ExecSession::~ExecSession() = default;

bool ExecSession::Impl::attach_went_first() {
  base::MutexLock lock(mu);
  if (!ended || exited || broken || end_error != ECONNRESET || received != 0) return false;
  ended = false;
  end_error = 0;
  return true;
}

api::CallToken ExecSession::Impl::attach_to(const std::shared_ptr<Impl>& self, bool early) {
  api::CallOptions options;
  options.no_deadline = true;
  options.lane = api::Lane::kBulk;
  options.credit = kWindow;
  options.manual_credit = true;
  const auto token =
      link.call(wire::Method::kProcAttach, wire::encode(wire::ProcAttach{proc, 0, early, true}),
                std::make_unique<AttachSink<Impl>>(self), options);
  bool bad = false;
  {
    base::MutexLock lock(mu);
    attach = token;
    bad = broken;
  }
  if (bad) link.cancel(token);
  return token;
}

void ExecSession::Impl::take_chunk(wire::ByteView bytes) {
  api::CallToken bad = 0;
  {
    base::MutexLock lock(mu);
    if (broken) return;
    partial.insert(partial.end(), bytes.begin(), bytes.end());
    take_records_locked();
    if (broken) bad = attach;
    cv.notify_all();
  }
  if (bad != 0) link.cancel(bad);  // else run() does, as soon as it knows the token
}

void ExecSession::Impl::take_records_locked() {
  std::size_t at = 0;
  while (partial.size() - at >= 4) {
    std::uint32_t length = 0;
    std::memcpy(&length, partial.data() + at, 4);
    broken = length > wire::kMaxMessage;
    if (broken || partial.size() - at - 4 < length) break;
    auto record = wire::decode<wire::ProcOutput>(wire::ByteView(partial).subspan(at + 4, length));
    broken = !record;
    if (broken) break;
    const std::size_t wire_size = 4 + static_cast<std::size_t>(length);
    at += wire_size;
    if (record->stream == wire::ProcStream::kExit) {
      exited = true;
      exit_record = *record;
      owed += wire_size;
    } else {
      const std::uint64_t size =
          record->stream == wire::ProcStream::kGap ? record->lost : record->data.size();
      received = record->offset + size;
      output.push_back({*std::move(record), wire_size});
    }
  }
  if (broken) {
    partial = {};
  } else {
    partial.erase(partial.begin(), partial.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

bool ExecSession::Impl::write_output(const wire::ProcOutput& record) {
  const auto deadline = Clock::now() + kClientWrite;
  if (record.stream == wire::ProcStream::kGap) {
    return client.write_json({{"gap", record.lost}}, deadline).ok();
  }
  const auto type = record.stream == wire::ProcStream::kStderr ? ControlType::kStderr : ControlType::kStdout;
  return client.write(type, wire::as_text(record.data), deadline).ok();
}

// Body of the writer thread: output to the client, then the exit status.
void ExecSession::Impl::pump(const SettleFn& settle) noexcept {
  pthread_setname_np(pthread_self(), "exec-out");
  while (true) {
    Output next;
    std::uint64_t taken = 0;
    std::size_t spent = 0;
    int problem = 0;
    bool have = false;
    api::CallToken token = 0;
    {
      base::MutexLock lock(mu);
      while (output.empty() && !ended && !stop && input_taken == input_reported && owed == 0 &&
             input_error == 0) {
        (void)cv.wait_until(mu, Clock::now() + 1h);
      }
      if (stop) return;
      if (input_taken != input_reported) taken = input_reported = input_taken;
      problem = std::exchange(input_error, 0);
      spent = std::exchange(owed, 0);
      token = attach;
      have = !output.empty();
      if (!have && taken == 0 && problem == 0 && spent == 0) break;
      if (have) {
        next = std::move(output.front());
        output.pop_front();
      }
    }
    if (taken != 0 && !client.write_json({{"input_taken", taken}}, Clock::now() + kClientWrite)) break;
    if (problem != 0 &&
        !client.write_json({{"input_error", input_ended(problem)}}, Clock::now() + kClientWrite)) {
      break;
    }
    const auto& record = next.record;
    if (have && !write_output(record)) break;
    link.grant(token, static_cast<std::uint32_t>(spent + next.wire_size));
    if (!have) continue;
    const auto end =
        record.offset + (record.stream == wire::ProcStream::kGap ? record.lost : record.data.size());
    link.note(wire::Method::kProcConsumed, wire::encode(wire::ProcConsumed{proc, end}));
  }
  tell_end(settle);
}

void ExecSession::Impl::tell_end(const SettleFn& settle) {
  bool ok = false;
  int error = 0;
  wire::ProcOutput exit;
  {
    base::MutexLock lock(mu);
    if (stop) return;
    ok = exited && !broken;
    error = end_error;
    exit = exit_record;
  }
  if (ok) {
    link.note(wire::Method::kProcForget, wire::encode(wire::ProcForget{proc}));
    settle(exit.instance, exit.seq);
    (void)client.write_json({{"exit", {{"code", exit.code}, {"signal", exit.signal}}}}, Clock::now() + 30s);
  } else {
    // ECONNRESET: the link does not send the attach to another agent than the one that had it.
    const auto failure =
        error == ENOENT || error == ECONNRESET
            ? api::make_error(api::ErrorCode::kInternal,
                              "the agent in the sandbox was restarted and the command is lost; run it again")
            : base::errno_error(error == 0 ? EPROTO : error, name + ": the command's output ended");
    (void)client.write_json({{"error", error_object(failure)}}, Clock::now() + 30s);
  }
  client.shutdown();
}

// Input goes piece by piece, each sent when the one before is in the command's pipe. The client sends
// no more than kInputWindow ahead of what it was told was taken, so signals never wait behind input.
void ExecSession::Impl::queue_input(const std::shared_ptr<Impl>& self, std::string data, bool eof) {
  {
    base::MutexLock lock(mu);
    std::size_t queued = 0;
    for (const auto& piece : input) queued += piece.data.size();
    if (input_closed) {
      input_taken += data.size();
      cv.notify_all();
      return;
    }
    if (queued + data.size() > kInputWindow + kMaxControlFrame) return;  // it does not keep to the window
    input.push_back({std::move(data), eof});
    if (input_busy) return;
    input_busy = true;
  }
  next_input(self);
}

void ExecSession::Impl::next_input(const std::shared_ptr<Impl>& self) {
  wire::ProcInput message;
  message.proc = proc;
  {
    base::MutexLock lock(mu);
    auto& first = input.front();
    const auto piece = std::string_view(first.data).substr(0, kInputPiece);
    message.offset = input_offset;
    message.eof = first.eof && piece.size() == first.data.size();
    const auto view = wire::as_view(piece);
    message.data.assign(view.begin(), view.end());
  }
  auto payload = wire::encode(message);
  api::CallOptions options;
  // A command may leave its input unread for as long as it likes; it ends, or the client goes.
  options.no_deadline = true;
  link.call(wire::Method::kProcInput, std::move(payload),
            std::make_unique<InputSink<Impl>>(self, std::move(message)), options);
}

// Nothing more is sent; what the client sent and sends counts as taken, so that it goes on.
void ExecSession::Impl::close_input_locked() {
  for (const auto& piece : input) input_taken += piece.data.size();
  input.clear();
  input_busy = false;
  input_closed = true;
  cv.notify_all();
}

// Takes off what the command was given of the first piece; false: the answer makes no sense.
bool ExecSession::Impl::input_advances_locked(const wire::ProcInput& sent, wire::ByteView payload) {
  const auto reply = wire::decode<wire::ProcInputReply>(payload);
  if (!reply || reply->accepted < sent.offset || reply->accepted - sent.offset > sent.data.size()) {
    return false;
  }
  const auto size = static_cast<std::size_t>(reply->accepted - sent.offset);
  input_idle = size == 0 && !sent.data.empty() ? input_idle + 1 : 0;
  if (input_idle > kMaxIdleAnswers) return false;
  input_offset += size;
  input_taken += size;
  auto& first = input.front();
  first.data.erase(0, size);
  if (first.data.empty()) input.pop_front();
  cv.notify_all();
  return true;
}

void ExecSession::Impl::input_done(const std::shared_ptr<Impl>& self, const wire::ProcInput& sent, int error,
                                   wire::ByteView payload) {
  wire::ProcInput end;
  {
    base::MutexLock lock(mu);
    if (input_closed || stop) return;
    // The command closed its input or is gone, or the link or the agent is: how the command ended tells.
    const bool over = error == EPIPE || error == ESRCH || error == ENOENT || error == ECONNRESET ||
                      error == ESHUTDOWN || ended;
    if (over) return close_input_locked();
    if (error == 0 && input_advances_locked(sent, payload)) {
      if (input.empty()) {
        input_busy = false;
        return;
      }
      error = 0;
    } else {
      input_error = error == 0 ? EPROTO : error;
      error = input_error;
      end.proc = proc;
      end.offset = input_offset;
      end.eof = true;
      close_input_locked();
    }
  }
  if (error == 0) return next_input(self);
  // A command that waits for more input gets its end instead.
  log.warn("exec step=input errno=" + std::to_string(error));
  notify(self, wire::Method::kProcInput, wire::encode(end));
}

// From the client's thread or the link's, neither of which may wait for a link that is down.
void ExecSession::Impl::notify(const std::shared_ptr<Impl>& self, wire::Method method, wire::Bytes payload) {
  {
    base::MutexLock lock(mu);
    if (notices >= kMaxNotices) return;
    ++notices;
  }
  api::CallOptions options;
  options.deadline = Clock::now() + kNoticeDeadline;
  auto again = payload;
  link.call(method, std::move(payload), std::make_unique<NoticeSink<Impl>>(self, std::move(again)), options);
}

void ExecSession::Impl::handle_control(const std::shared_ptr<Impl>& self, const nlohmann::json& message) {
  if (const auto it = message.find("signal"); it != message.end() && it->is_number_integer()) {
    const wire::ProcSignal signal{proc, it->get<int>(), true};
    notify(self, wire::Method::kProcSignal, wire::encode(signal));
  }
  if (const auto it = message.find("resize"); it != message.end() && it->is_object()) {
    wire::ProcResize resize;
    resize.proc = proc;
    resize.rows = it->value("rows", std::uint16_t{24});
    resize.cols = it->value("cols", std::uint16_t{80});
    notify(self, wire::Method::kProcResize, wire::encode(resize));
  }
}

// The signals go out by themselves, when the link is up: only the command's own end is waited for.
void ExecSession::Impl::hang_up(const std::shared_ptr<Impl>& self) {
  const auto send = [&](int signal) {
    notify(self, wire::Method::kProcSignal, wire::encode(wire::ProcSignal{proc, signal, true}));
  };
  send(SIGHUP);
  const auto limit = Clock::now() + kHangupGrace;
  {
    base::MutexLock lock(mu);
    while (!exited && (!ended || broken) && Clock::now() < limit) (void)cv.wait_until(mu, limit);
    if (!broken && (exited || ended)) return;
  }
  send(SIGKILL);
}

void ExecSession::run(const nlohmann::json& request, Deadline deadline, const SettleFn& settle) {
  auto& impl = *impl_;
  wire::ProcStart start;
  start.proc = impl.proc = random_id();
  start.argv = strings(request, "argv");
  start.env = strings(request, "env");
  start.cwd = request.value("cwd", "");
  start.user = request.value("user", "");
  start.ring_bytes = request.value("ring_bytes", 0U);
  start.rows = request.value("rows", std::uint16_t{24});
  start.cols = request.value("cols", std::uint16_t{80});
  if (request.value("stdin", false)) start.flags |= wire::kProcStdin;
  if (request.value("tty", false)) start.flags |= wire::kProcPty;
  if (request.value("background", false)) start.flags |= wire::kProcBackground;
  if (start.argv.empty()) {
    const auto error = api::make_error(api::ErrorCode::kArgMissing, "COMMAND is required");
    (void)impl.client.write_json({{"error", error_object(error)}}, Clock::now() + 5s);
    return;
  }
  // Asked for before the answer of the start, which costs a round trip less.
  const bool background = (start.flags & wire::kProcBackground) != 0;
  auto attach = background ? 0 : impl.attach_to(impl_, true);
  auto started =
      sync_call<wire::ProcReply>(impl.link, wire::Method::kProcStart, start, deadline, Resend::kYes);
  if (!started && attach != 0) impl.link.cancel(attach);
  if (!started && started.error().as_errno() == ETIMEDOUT) {
    // What the client is told has failed must not run behind its back.
    impl.notify(impl_, wire::Method::kProcSignal, wire::encode(wire::ProcSignal{start.proc, SIGKILL, true}));
  }
  if (!started && started.error().as_errno() == ESTALE) {
    const auto error =
        api::make_error(api::ErrorCode::kInternal,
                        "the agent in the sandbox died while it started the command, which may "
                        "have run; look before you run it again");
    (void)impl.client.write_json({{"error", error_object(error)}}, Clock::now() + 5s);
    return;
  }
  if (!started) {
    (void)impl.client.write_json(
        {{"error",
          error_object(api::in_sandbox(std::move(started).error().during("start command"), impl.name))}},
        Clock::now() + 5s);
    return;
  }
  // An agent that died before it started the command took the attach along; another one has started it.
  if (impl.attach_went_first()) attach = impl.attach_to(impl_, false);
  (void)impl.client.write_json({{"started", {{"pid", started->pid}, {"proc", std::to_string(start.proc)}}}},
                               Clock::now() + 5s);
  if (background) return;
  std::jthread writer([&impl, &settle] { impl.pump(settle); });

  bool over = false;
  while (!over) {
    auto frame = impl.client.read(Clock::now() + 1h);
    if (!frame) {
      if (frame.error().as_errno() == ETIMEDOUT) continue;
      break;
    }
    switch (frame->type) {
      case ControlType::kStdin:
        impl.queue_input(impl_, std::move(frame->payload), false);
        break;
      case ControlType::kStdinEof:
        impl.queue_input(impl_, {}, true);
        break;
      case ControlType::kJson:
        if (auto message = parse_json(frame->payload)) impl.handle_control(impl_, *message);
        break;
      default:
        over = true;
    }
  }
  bool running = false;
  {
    base::MutexLock lock(impl.mu);
    running = impl.broken || (!impl.exited && !impl.ended);
  }
  if (running) impl.hang_up(impl_);
  impl.link.cancel(attach);
  {
    base::MutexLock lock(impl.mu);
    if (running) impl.stop = true;
    impl.cv.notify_all();
  }
}

}  // namespace nearbox::daemon
