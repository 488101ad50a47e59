// SPDX-License-Identifier: Apache-2.0
#include "client/channel/frame.h"
#include "tests/fuzz/bytes_carrier.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

NEARBOX_FUZZ(bytes) {
  test::BytesCarrier carrier(bytes);
  channel::FrameReader reader(carrier);
  channel::Assembler assembler;
  while (true) {
    const auto frame = reader.next(test::never());
    if (!frame || !*frame) return;
    NEARBOX_FUZZ_CHECK((*frame)->payload.size() <= wire::kMaxFramePayload);
    const auto whole = assembler.add(**frame);
    if (!whole) return;
    NEARBOX_FUZZ_CHECK(!*whole || (*whole)->size() <= channel::kMaxAssembled);
    NEARBOX_FUZZ_CHECK(assembler.partial() <= wire::kMaxPartialMessages);
  }
}
