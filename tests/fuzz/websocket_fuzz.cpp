// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <memory>

#include "client/channel/websocket.h"
#include "tests/fuzz/bytes_carrier.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

NEARBOX_FUZZ(bytes) {
  for (const auto role : {channel::WsRole::kServer, channel::WsRole::kClient}) {
    channel::WsCarrier carrier(std::make_unique<test::BytesCarrier>(bytes), role);
    std::array<std::byte, 100> buffer{};
    std::size_t total = 0;
    while (true) {
      const auto got = carrier.read(buffer, test::never());
      if (!got || *got == 0) break;
      total += *got;
      (void)carrier.write(buffer, test::never());
    }
    NEARBOX_FUZZ_CHECK(total <= bytes.size());
  }
}
