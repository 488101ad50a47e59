// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/fuzz_target.h"
#include "tools/sandbox_server/envelope.h"

using namespace nearbox;

NEARBOX_FUZZ(bytes) {
  std::string buffer(wire::as_text(bytes));
  std::string again;
  while (true) {
    const auto taken = sandbox_server::take_envelope(buffer);
    if (!taken) return;
    if (!*taken) break;
    NEARBOX_FUZZ_CHECK((*taken)->message.size() <= sandbox_server::kMaxEnvelope);
    again += sandbox_server::encode_envelope((*taken)->flags, (*taken)->message);
  }
  NEARBOX_FUZZ_CHECK(again + buffer == wire::as_text(bytes));
}
