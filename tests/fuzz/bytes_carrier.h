// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstring>

#include "client/channel/carrier.h"

namespace nearbox::test {

// Gives the bytes of an input, a few at a time, then the end; takes whatever is written.
class BytesCarrier final : public channel::Carrier {
 public:
  explicit BytesCarrier(wire::ByteView bytes) : bytes_(bytes) {}
  base::Result<std::size_t> read(std::span<std::byte> into, channel::Deadline) override {
    step_ = step_ * 5 % 251;
    const auto size = std::min({into.size(), bytes_.size(), step_});
    if (size > 0) std::memcpy(into.data(), bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    return size;
  }
  base::Result<void> write(wire::ByteView, channel::Deadline) override { return {}; }
  void shutdown() noexcept override {}

 private:
  wire::ByteView bytes_;
  std::size_t step_ = 1;
};

inline channel::Deadline never() { return channel::Deadline::max(); }

}  // namespace nearbox::test
