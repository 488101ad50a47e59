// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "client/wire/paths.h"
#include "client/wire/tree.h"
#include "tests/fuzz/fuzz_target.h"

using namespace nearbox;

namespace {

struct Taken {
  wire::Bytes again;  // the blocks, encoded anew
  bool ok = true;
};

// In pieces of `step` bytes: what comes out may not depend on it.
Taken decode(wire::ByteView bytes, std::size_t step) {
  Taken taken;
  wire::TreeDecoder decoder;
  wire::TreeEncoder encoder;
  while (taken.ok && !bytes.empty()) {
    const auto size = std::min(step, bytes.size());
    const auto fed = decoder.feed(bytes.first(size), [&](wire::TreeBlock&& block) {
      NEARBOX_FUZZ_CHECK(wire::valid_path(block.path) && block.entries.size() <= wire::kMaxBlockEntries);
      for (const auto& entry : block.entries) NEARBOX_FUZZ_CHECK(wire::valid_name(entry.name));
      encoder.add(block, taken.again);
    });
    taken.ok = fed.ok();
    bytes = bytes.subspan(size);
  }
  return taken;
}

}  // namespace

NEARBOX_FUZZ(bytes) {
  const auto whole = decode(bytes, bytes.size());
  const auto pieces = decode(bytes, 7);
  NEARBOX_FUZZ_CHECK(whole.ok == pieces.ok && whole.again == pieces.again);
  // What was understood says the same again.
  const auto again = decode(whole.again, whole.again.size());
  NEARBOX_FUZZ_CHECK(again.ok && again.again == whole.again);
}
