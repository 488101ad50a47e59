// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "client/base/fault.h"
#include "client/channel/mux_server.h"
#include "tools/agent/passwd.h"

namespace nearbox::agent::test {

// A directory of the test's own, removed at its end unless the test failed.
class TempDir {
 public:
  TempDir() : TempDir(std::filesystem::temp_directory_path()) {}
  explicit TempDir(const std::filesystem::path& below) {
    std::string name = (below / "nearbox-agent-XXXXXX").string();
    path = ::mkdtemp(name.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

// Memory where there is some: for tests that make thousands of files.
inline std::filesystem::path fast_directory() {
  return ::access("/dev/shm", W_OK) == 0 ? std::filesystem::path("/dev/shm")
                                         : std::filesystem::temp_directory_path();
}

inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}
inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// This process acting for itself.
inline Identity self() {
  Identity who;
  who.uid = who.agent_uid = ::geteuid();
  who.gid = who.agent_gid = ::getegid();
  return who;
}

inline bool eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

// Takes an answer like a client with endless credit.
class FakeResponder final : public channel::Responder {
 public:
  explicit FakeResponder(std::uint32_t id = 1) : id_(id) {}
  bool send(wire::ByteView bytes) override {
    std::unique_lock lock(mu_);
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return !stalled_ || cancelled_; });
    if (cancelled_) return false;
    data_.insert(data_.end(), bytes.begin(), bytes.end());
    changed_.notify_all();
    return true;
  }
  void end(int error, wire::ByteView payload) override {
    const std::lock_guard lock(mu_);
    if (ended_) ++extra_ends_;
    ended_ = true;
    error_ = error;
    payload_.assign(payload.begin(), payload.end());
    changed_.notify_all();
  }
  bool cancelled() const override { return cancelled_; }
  std::uint32_t call_id() const override { return id_; }

  void cancel() {
    const std::lock_guard lock(mu_);
    cancelled_ = true;
    changed_.notify_all();
  }
  void stall(bool on) {
    const std::lock_guard lock(mu_);
    stalled_ = on;
    changed_.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mu_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return ended_; });
  }
  bool wait_bytes(std::size_t n) {
    std::unique_lock lock(mu_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return data_.size() >= n; });
  }
  bool ended() {
    const std::lock_guard lock(mu_);
    return ended_;
  }
  int error() {
    const std::lock_guard lock(mu_);
    return error_;
  }
  int extra_ends() {
    const std::lock_guard lock(mu_);
    return extra_ends_;
  }
  wire::Bytes data() {
    const std::lock_guard lock(mu_);
    return data_;
  }
  template <class M>
  M reply() {
    const std::lock_guard lock(mu_);
    return wire::decode<M>(payload_).value_or(M{});
  }

 private:
  const std::uint32_t id_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::atomic<bool> cancelled_{false};
  bool stalled_ = false;
  bool ended_ = false;
  int extra_ends_ = 0;
  int error_ = -1;
  wire::Bytes data_;
  wire::Bytes payload_;
};

// Switches fault points; off again at the end.
class Faults {
 public:
  Faults() { base::fault::set_file(dir_ / "faults"); }
  ~Faults() {
    set("");
    base::fault::set_file("");
  }
  // Returns when `probe` (name, subject) is as wanted.
  void set(const std::string& text) { write_file(dir_ / "faults", text); }
  bool reaches(const std::string& name, const std::string& subject, bool active) {
    return eventually([&] { return base::fault::active(name, subject) == active; });
  }

 private:
  TempDir dir_;
};

}  // namespace nearbox::agent::test
