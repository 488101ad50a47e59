// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include "tests/fuzz/fuzz_target.h"
#include "tools/sandbox_server/multipart.h"

using namespace nearbox;
using sandbox_server::MultipartReader;

// The first byte is the size of the pieces; then the Content-Type as a line; then the body.
NEARBOX_FUZZ(bytes) {
  if (bytes.empty()) return;
  const auto step = 1 + std::to_integer<std::size_t>(bytes[0]);
  const auto text = wire::as_text(bytes.subspan(1));
  const auto line = text.substr(0, text.find('\n'));
  auto body = text.substr(std::min(text.size(), line.size() + 1));
  const auto size = body.size();
  const auto boundary = MultipartReader::boundary_of(line);
  if (!boundary) return;
  MultipartReader reader(*boundary, [&](char* data, std::size_t room) {
    const auto count = body.copy(data, std::min(step, room));
    body.remove_prefix(count);
    return base::Result<std::size_t>(count);
  });
  std::array<char, 100> buffer{};
  std::size_t total = 0;
  while (true) {
    const auto part = reader.next();
    if (!part || !*part) break;
    while (true) {
      const auto got = reader.read(buffer.data(), buffer.size());
      if (!got || *got == 0) break;
      NEARBOX_FUZZ_CHECK(*got <= buffer.size());
      total += *got;
    }
  }
  NEARBOX_FUZZ_CHECK(total <= size);
}
