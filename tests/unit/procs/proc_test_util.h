// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tools/agent/proc_table.h"

namespace nearbox::agent::test {

using namespace std::chrono_literals;

inline constexpr auto kPatience = 30s;  // far above what any step takes, sanitizers included

// Waits for a condition that another process brings about and tells nobody of.
inline bool eventually(const std::function<bool()>& condition,
                       std::chrono::milliseconds patience = kPatience) {
  std::mutex mu;
  std::condition_variable never;
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::unique_lock lock(mu);
    never.wait_for(lock, 2ms);
  }
  return true;
}

inline std::string file_text(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A directory that goes with the test.
class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/nearbox-procs-XXXXXX";
    path_ = mkdtemp(name);
    EXPECT_EQ(::chmod(path_.c_str(), 0755), 0);  // for commands of other users
  }
  ~TempDir() { (void)!std::system(("rm -rf '" + path_ + "'").c_str()); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// A client's end of one call. Stricter than the real one: a second end() fails the test.
class FakeResponder : public channel::Responder {
 public:
  explicit FakeResponder(std::size_t credit = SIZE_MAX) : credit_(credit) {}

  bool send(wire::ByteView bytes) override {
    std::unique_lock lock(mu_);
    EXPECT_LE(bytes.size(), wire::kMaxMessage);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return over() || credit_ > 0; }));
    if (over()) return false;
    credit_ -= std::min(credit_, bytes.size());
    stream_.insert(stream_.end(), bytes.begin(), bytes.end());
    changed_.notify_all();
    return true;
  }
  void end(int error, wire::ByteView payload) override {
    std::unique_lock lock(mu_);
    EXPECT_FALSE(ended_) << "ended twice";
    ended_ = true;
    error_ = error;
    payload_.assign(payload.begin(), payload.end());
    changed_.notify_all();
  }
  bool cancelled() const override {
    std::unique_lock lock(mu_);
    return cut_;
  }
  std::uint32_t call_id() const override { return 1; }

  // The connection goes.
  void cut() {
    std::unique_lock lock(mu_);
    cut_ = true;
    changed_.notify_all();
  }
  void add_credit(std::size_t bytes) {
    std::unique_lock lock(mu_);
    credit_ += bytes;
    changed_.notify_all();
  }
  bool wait_end() {
    std::unique_lock lock(mu_);
    return changed_.wait_for(lock, kPatience, [&] { return ended_; });
  }
  bool ended() const {
    std::unique_lock lock(mu_);
    return ended_;
  }
  int error() const {
    std::unique_lock lock(mu_);
    return error_;
  }
  std::uint64_t accepted() const {
    std::unique_lock lock(mu_);
    const auto reply = wire::decode<wire::ProcInputReply>(payload_);
    return reply ? reply->accepted : UINT64_MAX;
  }
  // The next whole record, or nothing when the call ended without one.
  std::optional<wire::ProcOutput> next() {
    std::unique_lock lock(mu_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return stream_.size() > at_ || ended_; }));
    if (stream_.size() <= at_) return std::nullopt;
    std::uint32_t length = 0;
    std::memcpy(&length, stream_.data() + at_, sizeof length);
    auto record = wire::decode<wire::ProcOutput>(wire::ByteView(stream_).subspan(at_ + 4, length));
    EXPECT_TRUE(record.has_value());
    at_ += 4 + length;
    return record;
  }

 private:
  bool over() const { return cut_ || ended_; }
  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::size_t credit_;
  wire::Bytes stream_;
  std::size_t at_ = 0;
  bool ended_ = false;
  bool cut_ = false;
  int error_ = 0;
  wire::Bytes payload_;
};

inline wire::Bytes bytes_of(std::string_view text) {
  const auto view = wire::as_view(text);
  return {view.begin(), view.end()};
}

// What a client saw of a process.
struct Seen {
  std::string out, err, pty;
  std::uint64_t lost = 0;
  std::uint64_t position = 0;
  bool exited = false;
  std::int32_t code = 0, signal = 0;

  void add(const wire::ProcOutput& record) {
    EXPECT_EQ(record.offset, position);
    const std::string text(wire::as_text(record.data));
    switch (record.stream) {
      case wire::ProcStream::kStdout:
        out += text;
        break;
      case wire::ProcStream::kStderr:
        err += text;
        break;
      case wire::ProcStream::kPty:
        pty += text;
        break;
      case wire::ProcStream::kGap:
        lost += record.lost;
        break;
      case wire::ProcStream::kExit:
        exited = true;
        code = record.code;
        signal = record.signal;
        break;
    }
    position += text.size() + record.lost;
  }
};

class ProcTableTest : public ::testing::Test {
 protected:
  using Options = ProcTable::Options;
  static Options default_options() {
    Options options;
    if (geteuid() == 0) options.sandbox_user = "root";
    return options;
  }
  void open(Options options = default_options()) {
    table = std::make_unique<ProcTable>(
        options,
        [this](const wire::ProcExit& exit) {
          std::unique_lock lock(mu);
          exits[exit.proc].push_back(exit);
          exit_seen.notify_all();
        },
        log);
  }
  void SetUp() override { open(); }

  static wire::ProcStart request(std::uint64_t proc, std::vector<std::string> argv,
                                 std::uint32_t flags = wire::kProcNoLogin) {
    wire::ProcStart start;
    start.proc = proc;
    start.argv = std::move(argv);
    start.flags = flags;
    start.cwd = "/";
    return start;
  }
  wire::ProcReply start(const wire::ProcStart& what) {
    auto reply = table->start(what);
    EXPECT_TRUE(reply) << (reply ? "" : reply.error().message());
    return reply ? *reply : wire::ProcReply{};
  }
  wire::ProcReply shell(std::uint64_t proc, const std::string& script,
                        std::uint32_t flags = wire::kProcNoLogin) {
    return start(request(proc, {"sh", "-c", script}, flags));
  }
  std::shared_ptr<FakeResponder> attach(std::uint64_t proc, std::uint64_t offset = 0,
                                        std::size_t credit = SIZE_MAX) {
    auto responder = std::make_shared<FakeResponder>(credit);
    table->attach({proc, offset}, responder);
    return responder;
  }
  std::shared_ptr<FakeResponder> attach_early(std::uint64_t proc, bool settle = false) {
    auto responder = std::make_shared<FakeResponder>();
    table->attach({proc, 0, true, settle}, responder);
    return responder;
  }
  // Reads to the end, confirming as a client does.
  Seen read_all(std::uint64_t proc, Seen seen = {}) {
    auto responder = attach(proc, seen.position);
    while (auto record = responder->next()) {
      seen.add(*record);
      table->consumed({proc, seen.position});
    }
    EXPECT_TRUE(responder->wait_end());
    EXPECT_EQ(responder->error(), 0);
    return seen;
  }
  // Reads until `condition` holds of what was seen.
  void read_until(FakeResponder& responder, Seen& seen, const std::function<bool()>& condition) {
    while (!condition()) {
      const auto record = responder.next();
      ASSERT_TRUE(record) << "the stream ended early";
      seen.add(*record);
    }
  }
  std::shared_ptr<FakeResponder> input(std::uint64_t proc, std::uint64_t offset, std::string_view text,
                                       bool eof = false) {
    auto responder = std::make_shared<FakeResponder>();
    wire::ProcInput message{proc, offset, eof, bytes_of(text)};
    table->input(message, responder);
    return responder;
  }
  bool wait_exit(std::uint64_t proc) {
    std::unique_lock lock(mu);
    return exit_seen.wait_for(lock, kPatience, [&] { return exits.contains(proc); });
  }

  base::Logger log{2, base::LogLevel::kWarn};
  std::mutex mu;
  std::condition_variable exit_seen;
  std::map<std::uint64_t, std::vector<wire::ProcExit>> exits;
  std::unique_ptr<ProcTable> table;
};

}  // namespace nearbox::agent::test
