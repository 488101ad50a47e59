// SPDX-License-Identifier: Apache-2.0
#include "client/channel/handshake.h"
#include "client/channel/mux_server.h"
#include "tests/fuzz/bytes_carrier.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

NEARBOX_FUZZ(bytes) {
  test::BytesCarrier agent(bytes);
  const auto hello = channel::read_hello(agent, test::never());
  NEARBOX_FUZZ_CHECK(!hello || hello->build.size() <= wire::kMaxText);
  test::BytesCarrier client(bytes);
  const auto welcome = channel::read_welcome(client, test::never());
  NEARBOX_FUZZ_CHECK(!welcome || welcome->version == wire::kProtocolVersion);
}
