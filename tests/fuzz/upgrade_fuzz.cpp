// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "client/channel/upgrade.h"
#include "client/channel/ws_client.h"
#include "client/channel/ws_server.h"
#include "tests/fuzz/bytes_carrier.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

NEARBOX_FUZZ(bytes) {
  (void)channel::accept_websocket(std::make_unique<test::BytesCarrier>(bytes), test::never());
  (void)channel::upgrade_websocket(std::make_unique<test::BytesCarrier>(bytes), "host", "/", {},
                                   test::never());
  const auto head = channel::parse_http_head(wire::as_text(bytes));
  if (!head) return;
  NEARBOX_FUZZ_CHECK(!head->start_line.empty() && head->fields.size() <= channel::kMaxHttpFields);
  const auto refusal = channel::check_upgrade_request(*head);
  NEARBOX_FUZZ_CHECK(refusal.status == 0 || !refusal.text.empty());
}
