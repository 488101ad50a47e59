// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/all_messages.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

NEARBOX_FUZZ(bytes) {
  if (bytes.empty()) return;
  const auto which = std::to_integer<std::size_t>(bytes[0]);
  test::for_each_message([&]<class M>(std::size_t index) {
    if (index != which) return;
    const auto message = wire::decode<M>(bytes.subspan(1));
    if (!message) return;
    // What was understood says the same again (any byte but 0 is true, so compare one step later).
    const auto once = wire::encode(*message);
    const auto again = wire::decode<M>(once);
    NEARBOX_FUZZ_CHECK(again && wire::encode(*again) == once);
    NEARBOX_FUZZ_CHECK(once.size() == bytes.size() - 1);
  });
}
