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
constexpr auto kStartDeadline = 30s;
constexpr auto kClientWrite = 24h;  // a stopped terminal stops the command, as it does locally
constexpr auto kHangupGrace = 5s;

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
  Impl(api::AgentLink& l, ControlConnection& c, base::Logger& g) : link(l), client(c), log(g) {}

  api::AgentLink& link;
  ControlConnection& client;
  base::Logger& log;
  std::uint64_t proc = 0;
  api::CallToken attach = 0;

  base::Mutex mu;  // rank: leaf; no link call is made under it
  base::CondVar cv;
  std::deque<wire::ProcOutput> output GUARDED_BY(mu);
  wire::Bytes partial GUARDED_BY(mu);         // a record that has not wholly come
  std::uint64_t received GUARDED_BY(mu) = 0;  // output offset after the last whole record
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
  std::uint64_t input_taken GUARDED_BY(mu) = 0;     // bytes the command has been given
  std::uint64_t input_reported GUARDED_BY(mu) = 0;  // … and the client was told of

  void take_chunk(wire::ByteView bytes) EXCLUDES(mu);
  void pump(const SettleFn& settle) noexcept;
  bool write_output(const wire::ProcOutput& record);
  void queue_input(const std::shared_ptr<Impl>& self, std::string data, bool eof) EXCLUDES(mu);
  void next_input(const std::shared_ptr<Impl>& self) EXCLUDES(mu);
  void input_done(const std::shared_ptr<Impl>& self, int error) EXCLUDES(mu);
  void handle_control(const nlohmann::json& message);
  void hang_up();
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
    impl_->end_error = error;
    impl_->cv.notify_all();
  }
  std::optional<wire::Bytes> on_lost() noexcept override {
    base::MutexLock lock(impl_->mu);
    impl_->partial.clear();
    return wire::encode(wire::ProcAttach{impl_->proc, impl_->received});
  }

 private:
  std::shared_ptr<Impl> impl_;
};

// The end of one piece of input.
template <class Impl>
class InputSink : public api::CallSink {
 public:
  InputSink(std::shared_ptr<Impl> impl, wire::Bytes again)
      : impl_(std::move(impl)), again_(std::move(again)) {}
  void on_end(int error, wire::ByteView) noexcept override { impl_->input_done(impl_, error); }
  std::optional<wire::Bytes> on_lost() noexcept override { return again_; }

 private:
  std::shared_ptr<Impl> impl_;
  wire::Bytes again_;
};

}  // namespace

ExecSession::ExecSession(api::AgentLink& link, ControlConnection& client, base::Logger& log)
    : impl_(std::make_shared<Impl>(link, client, log)) {}
ExecSession::~ExecSession() = default;

void ExecSession::Impl::take_chunk(wire::ByteView bytes) {
  base::MutexLock lock(mu);
  partial.insert(partial.end(), bytes.begin(), bytes.end());
  std::size_t at = 0;
  while (partial.size() - at >= 4) {
    std::uint32_t length = 0;
    std::memcpy(&length, partial.data() + at, 4);
    if (length > wire::kMaxMessage) break;  // the attach call then ends in EPROTO below
    if (partial.size() - at - 4 < length) break;
    auto record = wire::decode<wire::ProcOutput>(wire::ByteView(partial).subspan(at + 4, length));
    at += 4 + length;
    if (!record) continue;
    if (record->stream == wire::ProcStream::kExit) {
      exited = true;
      exit_record = *record;
    } else {
      const std::uint64_t size =
          record->stream == wire::ProcStream::kGap ? record->lost : record->data.size();
      received = record->offset + size;
      output.push_back(*std::move(record));
    }
  }
  partial.erase(partial.begin(), partial.begin() + static_cast<std::ptrdiff_t>(at));
  cv.notify_all();
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
    wire::ProcOutput record;
    std::uint64_t taken = 0;
    bool have = false;
    {
      base::MutexLock lock(mu);
      while (output.empty() && !ended && !stop && input_taken == input_reported) {
        (void)cv.wait_until(mu, Clock::now() + 1h);
      }
      if (stop) return;
      taken = input_taken;
      const bool news = taken != input_reported;
      input_reported = taken;
      if (output.empty() && !news) break;
      if (!news) taken = 0;
      have = !output.empty();
      if (have) {
        record = std::move(output.front());
        output.pop_front();
      }
    }
    if (taken != 0 && !client.write_json({{"input_taken", taken}}, Clock::now() + kClientWrite)) break;
    if (!have) continue;
    // Framing of the record on the wire counts against credit too; 64 bytes cover it.
    const auto spent = static_cast<std::uint32_t>(record.data.size() + 64);
    if (!write_output(record)) break;
    link.grant(attach, spent);
    const auto end =
        record.offset + (record.stream == wire::ProcStream::kGap ? record.lost : record.data.size());
    link.note(wire::Method::kProcConsumed, wire::encode(wire::ProcConsumed{proc, end}));
  }
  bool ok = false;
  int error = 0;
  wire::ProcOutput exit;
  {
    base::MutexLock lock(mu);
    if (stop) return;
    ok = exited;
    error = end_error;
    exit = exit_record;
  }
  if (ok) {
    link.note(wire::Method::kProcForget, wire::encode(wire::ProcForget{proc}));
    settle();
    (void)client.write_json({{"exit", {{"code", exit.code}, {"signal", exit.signal}}}}, Clock::now() + 30s);
  } else {
    const auto failure =
        error == ENOENT
            ? api::make_error(api::ErrorCode::kInternal,
                              "the agent in the sandbox was restarted and the command is lost; run it again")
            : base::errno_error(error == 0 ? EPROTO : error, "the command's output ended");
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
    message.offset = input_taken;
    message.eof = first.eof && piece.size() == first.data.size();
    const auto view = wire::as_view(piece);
    message.data.assign(view.begin(), view.end());
  }
  auto payload = wire::encode(message);
  api::CallOptions options;
  // A command may leave its input unread for as long as it likes; it ends, or the client goes.
  options.no_deadline = true;
  link.call(wire::Method::kProcInput, payload, std::make_unique<InputSink<Impl>>(self, payload), options);
}

void ExecSession::Impl::input_done(const std::shared_ptr<Impl>& self, int error) {
  {
    base::MutexLock lock(mu);
    if (error != 0 || stop) {  // the command closed its input or is gone: its exit status tells
      for (const auto& piece : input) input_taken += piece.data.size();
      input.clear();
      input_busy = false;
      cv.notify_all();
      return;
    }
    auto& first = input.front();
    const auto size = std::min(first.data.size(), kInputPiece);
    input_taken += size;
    first.data.erase(0, size);
    if (first.data.empty()) input.pop_front();
    cv.notify_all();
    if (input.empty()) {
      input_busy = false;
      return;
    }
  }
  next_input(self);
}

void ExecSession::Impl::handle_control(const nlohmann::json& message) {
  const auto deadline = Clock::now() + 10s;
  if (const auto it = message.find("signal"); it != message.end() && it->is_number_integer()) {
    const wire::ProcSignal signal{proc, it->get<int>(), true};
    (void)sync_call(link, wire::Method::kProcSignal, wire::encode(signal), deadline, Resend::kNo);
  }
  if (const auto it = message.find("resize"); it != message.end() && it->is_object()) {
    wire::ProcResize resize;
    resize.proc = proc;
    resize.rows = it->value("rows", std::uint16_t{24});
    resize.cols = it->value("cols", std::uint16_t{80});
    (void)sync_call(link, wire::Method::kProcResize, wire::encode(resize), deadline, Resend::kNo);
  }
}

void ExecSession::Impl::hang_up() {
  const auto send = [this](int signal) {
    (void)sync_call(link, wire::Method::kProcSignal, wire::encode(wire::ProcSignal{proc, signal, true}),
                    Clock::now() + 10s, Resend::kYes);
  };
  send(SIGHUP);
  const auto limit = Clock::now() + kHangupGrace;
  {
    base::MutexLock lock(mu);
    while (!exited && !ended && Clock::now() < limit) (void)cv.wait_until(mu, limit);
    if (exited || ended) return;
  }
  send(SIGKILL);
}

void ExecSession::run(const nlohmann::json& request, const SettleFn& settle) {
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
  auto started = sync_call<wire::ProcReply>(impl.link, wire::Method::kProcStart, start,
                                            Clock::now() + kStartDeadline, Resend::kYes);
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
        {{"error", error_object(std::move(started).error().during("start command"))}}, Clock::now() + 5s);
    return;
  }
  (void)impl.client.write_json({{"started", {{"pid", started->pid}, {"proc", std::to_string(start.proc)}}}},
                               Clock::now() + 5s);
  if ((start.flags & wire::kProcBackground) != 0) return;

  api::CallOptions options;
  options.no_deadline = true;
  options.lane = api::Lane::kBulk;
  options.credit = kWindow;
  options.manual_credit = true;
  impl.attach = impl.link.call(wire::Method::kProcAttach, wire::encode(wire::ProcAttach{start.proc, 0}),
                               std::make_unique<AttachSink<Impl>>(impl_), options);
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
        if (auto message = parse_json(frame->payload)) impl.handle_control(*message);
        break;
      default:
        over = true;
    }
  }
  bool running = false;
  {
    base::MutexLock lock(impl.mu);
    running = !impl.exited && !impl.ended;
  }
  if (running) impl.hang_up();
  impl.link.cancel(impl.attach);
  {
    base::MutexLock lock(impl.mu);
    if (running) impl.stop = true;
    impl.cv.notify_all();
  }
}

}  // namespace nearbox::daemon
