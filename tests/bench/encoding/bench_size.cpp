// SPDX-License-Identifier: Apache-2.0
// Reads a message from stdin and writes it again, with one codec or none: its size is the result.
#include <string>
#include <unistd.h>

#if defined(BENCH_OURS)
#include "client/wire/messages.h"
static std::string again(const std::string& in) {
  using namespace nearbox::wire;
  if (auto apply = decode<Apply>(as_view(in))) return std::string(as_text(encode(*apply)));
  if (auto done = decode<OpDone>(as_view(in))) return std::string(as_text(encode(*done)));
  return {};
}
#elif defined(BENCH_PROTOBUF)
#include "ops.pb.h"
static std::string again(const std::string& in) {
  nearbox::bench::Apply apply;
  if (apply.ParseFromString(in)) return apply.SerializeAsString();
  nearbox::bench::OpDone done;
  if (done.ParseFromString(in)) return done.SerializeAsString();
  return {};
}
#else
static std::string again(const std::string& in) { return in; }
#endif

int main() {
  std::string in(65536, '\0');
  const auto n = ::read(0, in.data(), in.size());
  in.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  const auto out = again(in);
  return ::write(1, out.data(), out.size()) < 0 ? 1 : 0;
}
