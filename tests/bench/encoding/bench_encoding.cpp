// SPDX-License-Identifier: Apache-2.0
// Encode and decode times and sizes of our codec and of protobuf-lite, on batches of operations and
// on their acknowledgements. Prints a table; the least of several rounds counts.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <string>

#include "client/wire/messages.h"
#include "ops.pb.h"

namespace {

namespace wire = nearbox::wire;
namespace pb = nearbox::bench;
constexpr int kOps = 64;
constexpr int kRounds = 15;

volatile std::size_t sink;

// Nanoseconds of one call of fn, the least of kRounds measurements of about 10 ms.
template <class F>
double ns(F&& fn) {
  using Clock = std::chrono::steady_clock;
  double best = std::numeric_limits<double>::max();
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = Clock::now();
    int calls = 0;
    std::chrono::nanoseconds spent{0};
    do {
      for (int i = 0; i < 16; ++i) sink = fn();
      calls += 16;
      spent = Clock::now() - begin;
    } while (spent < std::chrono::milliseconds(10));
    best = std::min(best, static_cast<double>(spent.count()) / calls);
  }
  return best;
}

wire::Apply make_apply(std::size_t data) {
  wire::Apply apply;
  for (int i = 0; i < kOps; ++i) {
    wire::Op op;
    op.op_id = 1'000'000u + static_cast<unsigned>(i);
    op.kind = data > 0 ? wire::OpKind::kWrite : wire::OpKind::kCreate;
    op.keys = {{0x123456789abcdef0ull + static_cast<unsigned>(i), true}, {0xfedcba9876543210ull, false}};
    op.root = 1;
    op.path = "node_modules/some-package/dist/esm/index-" + std::to_string(i) + ".js";
    op.expect = {2049, 1'234'567u + static_cast<unsigned>(i)};
    op.mode = 0100644;
    op.uid = wire::kOwnerUser;
    op.gid = wire::kOwnerUser;
    op.mtime_ns = 1'700'000'000'123'456'789;
    op.data.assign(data, std::byte{'d'});
    apply.ops.push_back(op);
  }
  return apply;
}

pb::Apply to_proto(const wire::Apply& apply) {
  pb::Apply out;
  for (const auto& op : apply.ops) {
    auto& o = *out.add_ops();
    o.set_op_id(op.op_id);
    o.set_kind(static_cast<std::uint32_t>(op.kind));
    for (const auto& key : op.keys) {
      auto& k = *o.add_keys();
      k.set_key(key.key);
      k.set_exclusive(key.exclusive);
    }
    o.set_root(op.root);
    o.set_path(op.path);
    o.mutable_expect()->set_dev(op.expect.dev);
    o.mutable_expect()->set_ino(op.expect.ino);
    o.set_mode(op.mode);
    o.set_uid(op.uid);
    o.set_gid(op.gid);
    o.set_mtime_ns(static_cast<std::uint64_t>(op.mtime_ns));
    o.set_data(op.data.data(), op.data.size());
  }
  return out;
}

wire::Attr make_attr(std::uint64_t ino) {
  wire::Attr attr;
  attr.ino = ino, attr.dev = 2049, attr.mode = 0100644, attr.nlink = 1, attr.uid = 1000, attr.gid = 1000;
  attr.size = 12'345, attr.blocks = 32, attr.version = 77;
  attr.mtime_ns = 1'700'000'000'123'456'789, attr.ctime_ns = 1'700'000'000'123'456'999;
  return attr;
}

void to_proto(const wire::Attr& attr, pb::Attr& a) {
  a.set_ino(attr.ino), a.set_dev(attr.dev), a.set_mode(attr.mode), a.set_nlink(attr.nlink);
  a.set_uid(attr.uid), a.set_gid(attr.gid), a.set_size(attr.size), a.set_blocks(attr.blocks);
  a.set_mtime_ns(static_cast<std::uint64_t>(attr.mtime_ns));
  a.set_ctime_ns(static_cast<std::uint64_t>(attr.ctime_ns)), a.set_version(attr.version);
}

template <class Ours, class Proto>
void compare(const char* what, const Ours& ours, const Proto& proto, int count) {
  const auto our_bytes = wire::encode(ours);
  const auto proto_bytes = proto.SerializeAsString();
  const double our_encode = ns([&] { return wire::encode(ours).size(); });
  const double our_decode = ns([&] { return wire::decode<Ours>(our_bytes).has_value() ? 1u : 0u; });
  const double proto_encode = ns([&] { return proto.SerializeAsString().size(); });
  const double proto_decode = ns([&] {
    Proto message;
    return message.ParseFromString(proto_bytes) ? 1u : 0u;
  });
  const auto row = [&](const char* codec, double encode, double decode, std::size_t bytes) {
    std::printf("%-24s %-14s %10.0f %10.0f %10zu\n", what, codec, encode / count, decode / count,
                bytes / static_cast<std::size_t>(count));
  };
  row("ours", our_encode, our_decode, our_bytes.size());
  row("protobuf-lite", proto_encode, proto_decode, proto_bytes.size());
}

}  // namespace

int main() {
  std::printf("%-24s %-14s %10s %10s %10s\n", "message", "codec", "encode ns", "decode ns", "bytes");
  const auto small = make_apply(0);
  compare("op of 64, no data", small, to_proto(small), kOps);
  const auto with_data = make_apply(4096);
  compare("op of 64, 4 KiB", with_data, to_proto(with_data), kOps);
  wire::OpDone done;
  done.op_id = 1'000'000, done.written = 4096, done.attr = make_attr(1'234'567),
  done.parent = make_attr(1'234'000);
  pb::OpDone proto;
  proto.set_op_id(done.op_id), proto.set_written(done.written);
  to_proto(done.attr, *proto.mutable_attr());
  to_proto(done.parent, *proto.mutable_parent());
  compare("OpDone", done, proto, 1);
  return 0;
}
