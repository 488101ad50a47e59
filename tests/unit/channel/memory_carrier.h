// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include "client/base/mutex.h"
#include "client/channel/carrier.h"

namespace nearbox::test {

// One direction of a carrier in memory, with room for `capacity` bytes.
class MemoryPipe {
 public:
  explicit MemoryPipe(std::size_t capacity) : capacity_(capacity) {}

  base::Result<std::size_t> read(std::span<std::byte> into, channel::Deadline deadline) {
    base::MutexLock lock(mu_);
    while (bytes_.empty() && !closed_ && !aborted_) {
      if (!cv_.wait_until(mu_, deadline) && bytes_.empty()) return base::errno_error(ETIMEDOUT);
    }
    if (aborted_) return base::errno_error(ECONNABORTED);
    const auto n = std::min(into.size(), bytes_.size());
    std::copy_n(bytes_.begin(), n, into.begin());
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(n));
    cv_.notify_all();
    return n;
  }
  base::Result<void> write(wire::ByteView bytes, channel::Deadline deadline) {
    base::MutexLock lock(mu_);
    while (!bytes.empty()) {
      if (aborted_) return base::errno_error(ECONNABORTED);
      if (closed_) return base::errno_error(EPIPE);
      const auto n = std::min(bytes.size(), capacity_ - std::min(capacity_, bytes_.size()));
      if (n == 0) {
        if (!cv_.wait_until(mu_, deadline)) return base::errno_error(ETIMEDOUT);
        continue;
      }
      bytes_.insert(bytes_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
      bytes = bytes.subspan(n);
      cv_.notify_all();
    }
    return {};
  }
  void close() {
    base::MutexLock lock(mu_);
    closed_ = true;
    cv_.notify_all();
  }
  void abort() {
    base::MutexLock lock(mu_);
    aborted_ = true;
    cv_.notify_all();
  }
  std::size_t size() {
    base::MutexLock lock(mu_);
    return bytes_.size();
  }

 private:
  base::Mutex mu_;
  base::CondVar cv_;
  wire::Bytes bytes_ GUARDED_BY(mu_);
  const std::size_t capacity_;
  bool closed_ GUARDED_BY(mu_) = false;
  bool aborted_ GUARDED_BY(mu_) = false;
};

// One end of a pair of MemoryPipes; the other end reads 0 when this one is gone.
class MemoryCarrier final : public channel::Carrier {
 public:
  MemoryCarrier(std::shared_ptr<MemoryPipe> in, std::shared_ptr<MemoryPipe> out)
      : in_(std::move(in)), out_(std::move(out)) {}
  ~MemoryCarrier() override {
    out_->close();
    in_->close();
  }
  MemoryCarrier(const MemoryCarrier&) = delete;
  MemoryCarrier& operator=(const MemoryCarrier&) = delete;
  base::Result<std::size_t> read(std::span<std::byte> into, channel::Deadline deadline) override {
    if (stopped_.load()) return base::errno_error(ECONNABORTED);
    return in_->read(into, deadline);
  }
  base::Result<void> write(wire::ByteView bytes, channel::Deadline deadline) override {
    if (stopped_.load()) return base::errno_error(ECONNABORTED);
    return out_->write(bytes, deadline);
  }
  void shutdown() noexcept override {
    stopped_.store(true);
    in_->abort();
    out_->abort();
  }
  // Ends the stream to the other end after what was written.
  void finish() { out_->close(); }

 private:
  const std::shared_ptr<MemoryPipe> in_;
  const std::shared_ptr<MemoryPipe> out_;
  std::atomic<bool> stopped_{false};
};

inline std::pair<std::unique_ptr<MemoryCarrier>, std::unique_ptr<MemoryCarrier>> memory_pair(
    std::size_t capacity = 64 * 1024) {
  auto a = std::make_shared<MemoryPipe>(capacity);
  auto b = std::make_shared<MemoryPipe>(capacity);
  return {std::make_unique<MemoryCarrier>(a, b), std::make_unique<MemoryCarrier>(b, a)};
}

}  // namespace nearbox::test
