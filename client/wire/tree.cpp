// SPDX-License-Identifier: Apache-2.0
#include "client/wire/tree.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <sys/stat.h>
#include <utility>

#include "client/wire/paths.h"

// A block is u32 length | body. The body: path, attributes, flags, error, count, then the entries,
// each name | attributes [| target]. All numbers are little-endian base-128; differences are
// zig-zag. What equals the entry before, or follows from other fields, is left out: AttrBits says
// what is there.
namespace nearbox::wire {
namespace {

enum AttrBits : std::uint64_t {
  kHasDevice = 1,     // else the device of the attributes before
  kHasMode = 2,       // else the mode of the attributes before
  kHasOwner = 4,      // else the owner and group of the attributes before
  kHasNlink = 8,      // else 1
  kHasRdev = 16,      // else 0
  kHasBlocks = 32,    // else usual_blocks(size)
  kHasMtimeNs = 64,   // else whole seconds
  kHasCtime = 128,    // else the modification time
  kHasVersion = 256,  // else 0
  kHasTarget = 512,   // a symlink's target follows
  kHasBirth = 1024,   // else the birth of the attributes before
  kKnownAttrBits = 2047,
};
constexpr std::uint32_t kKnownFlags = kTreeMore | kTreeFailed | kTreePseudo | kTreeCrossed | kTreeNotExpanded;
constexpr std::uint32_t kFlagsWithoutEntries = kTreeFailed | kTreePseudo | kTreeNotExpanded;
constexpr std::int64_t kNsPerSecond = 1'000'000'000;
constexpr std::uint64_t kMaxErrno = 4095;  // MAX_ERRNO of Linux
constexpr std::size_t kLengthBytes = sizeof(std::uint32_t);

std::uint64_t usual_blocks(std::uint64_t size) { return ((size >> 12) + ((size & 4095) != 0 ? 1 : 0)) * 8; }
std::uint64_t zigzag(std::uint64_t difference) {
  return (difference << 1) ^ ((difference >> 63) != 0 ? ~std::uint64_t{0} : 0);
}
std::uint64_t unzigzag(std::uint64_t coded) {
  return (coded >> 1) ^ ((coded & 1) != 0 ? ~std::uint64_t{0} : 0);
}

bool known_type(std::uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
      return true;
    default:
      return false;
  }
}

// Times as seconds and 0 ≤ ns < 1 s, all arithmetic modulo 2^64 so that no input overflows.
std::uint64_t seconds_of(std::int64_t ns) {
  return static_cast<std::uint64_t>(ns / kNsPerSecond - (ns % kNsPerSecond < 0 ? 1 : 0));
}
std::uint64_t rest_of(std::int64_t ns) {
  return static_cast<std::uint64_t>(ns) - seconds_of(ns) * kNsPerSecond;
}

class Out {
 public:
  explicit Out(Bytes& out) : out_(out) {}
  void num(std::uint64_t value) {
    while (value >= 0x80) {
      out_.push_back(static_cast<std::byte>(value | 0x80));
      value >>= 7;
    }
    out_.push_back(static_cast<std::byte>(value));
  }
  void text(std::string_view value) {
    num(value.size());
    const auto bytes = as_view(value);
    out_.insert(out_.end(), bytes.begin(), bytes.end());
  }

 private:
  Bytes& out_;
};

// Like Reader: the first violation makes ok() false, afterwards everything reads as zero.
class In {
 public:
  explicit In(ByteView in) : in_(in) {}

  std::uint64_t num(std::uint64_t limit = ~std::uint64_t{0}) {
    std::uint64_t value = 0;
    for (unsigned shift = 0; ok_; shift += 7) {
      if (at_ == in_.size()) break;
      const auto byte = std::to_integer<std::uint64_t>(in_[at_++]);
      if (shift == 63 && byte > 1) break;
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) {
        if (value > limit) break;
        return value;
      }
    }
    ok_ = false;
    return 0;
  }
  std::uint32_t num32() { return static_cast<std::uint32_t>(num(0xffffffff)); }
  std::string_view text(std::size_t limit) {
    const auto size = static_cast<std::size_t>(num(limit));
    if (!ok_ || size > left()) {
      ok_ = false;
      return {};
    }
    at_ += size;
    return as_text(in_.subspan(at_ - size, size));
  }
  void fail() { ok_ = false; }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && left() == 0; }
  std::size_t left() const { return in_.size() - at_; }

 private:
  ByteView in_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

// The difference of a birth to the change time: small where a tree was written at once.
std::uint32_t birth_distance(const Attr& attr) { return birth_of(attr.ctime_ns) - attr.birth; }
std::uint64_t zigzag32(std::uint32_t difference) {
  return static_cast<std::uint32_t>((difference << 1) ^ ((difference >> 31) != 0 ? ~0U : 0U));
}
std::uint32_t unzigzag32(std::uint32_t coded) { return (coded >> 1) ^ ((coded & 1) != 0 ? ~0U : 0U); }

std::uint64_t attr_bits(const TreeState& state, const Attr& attr, bool has_target) {
  const auto differs = [](bool yes, AttrBits bit) { return yes ? bit : std::uint64_t{0}; };
  const bool same_device = state.device < state.devices.size() && state.devices[state.device] == attr.dev;
  return differs(!same_device, kHasDevice) | differs(attr.mode != state.mode, kHasMode) |
         differs(attr.uid != state.uid || attr.gid != state.gid, kHasOwner) |
         differs(attr.nlink != 1, kHasNlink) | differs(attr.rdev != 0, kHasRdev) |
         differs(attr.blocks != usual_blocks(attr.size), kHasBlocks) |
         differs(rest_of(attr.mtime_ns) != 0, kHasMtimeNs) |
         differs(attr.ctime_ns != attr.mtime_ns, kHasCtime) | differs(attr.version != 0, kHasVersion) |
         differs(has_target, kHasTarget) | differs(attr.birth != state.birth, kHasBirth);
}

void put_device(TreeState& state, std::uint64_t device, Out& out) {
  const auto found = std::find(state.devices.begin(), state.devices.end(), device);
  state.device = static_cast<std::uint64_t>(found - state.devices.begin());
  out.num(state.device);
  if (found != state.devices.end()) return;
  out.num(device);
  state.devices.push_back(device);
}

void put_attr(TreeState& state, const Attr& attr, std::uint64_t bits, Out& out) {
  out.num(bits);
  if ((bits & kHasDevice) != 0) put_device(state, attr.dev, out);
  if ((bits & kHasMode) != 0) out.num(attr.mode);
  if ((bits & kHasOwner) != 0) out.num(attr.uid), out.num(attr.gid);
  if ((bits & kHasNlink) != 0) out.num(attr.nlink);
  if ((bits & kHasRdev) != 0) out.num(attr.rdev);
  out.num(zigzag(attr.ino - state.ino));
  out.num(attr.size);
  if ((bits & kHasBlocks) != 0) out.num(attr.blocks);
  out.num(zigzag(seconds_of(attr.mtime_ns) - state.mtime_s));
  if ((bits & kHasMtimeNs) != 0) out.num(rest_of(attr.mtime_ns));
  const auto ctime = static_cast<std::uint64_t>(attr.ctime_ns);
  if ((bits & kHasCtime) != 0) out.num(zigzag(ctime - state.ctime_ns));
  if ((bits & kHasVersion) != 0) out.num(attr.version);
  if ((bits & kHasBirth) != 0) out.num(zigzag32(birth_distance(attr)));
  state.birth = attr.birth, state.mode = attr.mode, state.uid = attr.uid, state.gid = attr.gid;
  state.ino = attr.ino, state.mtime_s = seconds_of(attr.mtime_ns), state.ctime_ns = ctime;
}

std::uint64_t get_device(TreeState& state, In& in) {
  state.device = in.num(state.devices.size());
  if (!in.ok()) return 0;
  if (state.device == state.devices.size()) {
    const auto device = in.num();
    if (state.devices.size() == kMaxTreeDevices) in.fail();
    if (in.ok()) state.devices.push_back(device);
  }
  return in.ok() ? state.devices[state.device] : 0;
}

// The attributes, and whether a target follows the entry.
bool get_attr(TreeState& state, Attr& attr, In& in) {
  const auto bits = in.num(kKnownAttrBits);
  if ((bits & kHasDevice) != 0) {
    attr.dev = get_device(state, in);
  } else if (state.device < state.devices.size()) {
    attr.dev = state.devices[state.device];
  } else {
    in.fail();
  }
  if ((bits & kHasMode) != 0) state.mode = in.num32();
  if ((bits & kHasOwner) != 0) state.uid = in.num32(), state.gid = in.num32();
  attr.mode = state.mode, attr.uid = state.uid, attr.gid = state.gid;
  attr.nlink = (bits & kHasNlink) != 0 ? in.num32() : 1;
  attr.rdev = (bits & kHasRdev) != 0 ? in.num() : 0;
  attr.ino = state.ino += unzigzag(in.num());
  attr.size = in.num();
  attr.blocks = (bits & kHasBlocks) != 0 ? in.num() : usual_blocks(attr.size);
  state.mtime_s += unzigzag(in.num());
  const auto rest = (bits & kHasMtimeNs) != 0 ? in.num(kNsPerSecond - 1) : 0;
  attr.mtime_ns = static_cast<std::int64_t>(state.mtime_s * kNsPerSecond + rest);
  const auto mtime = static_cast<std::uint64_t>(attr.mtime_ns);
  state.ctime_ns = (bits & kHasCtime) != 0 ? state.ctime_ns + unzigzag(in.num()) : mtime;
  attr.ctime_ns = static_cast<std::int64_t>(state.ctime_ns);
  attr.version = (bits & kHasVersion) != 0 ? in.num() : 0;
  if ((bits & kHasBirth) != 0) state.birth = birth_of(attr.ctime_ns) - unzigzag32(in.num32());
  attr.birth = state.birth;
  return (bits & kHasTarget) != 0;
}

void get_entry(TreeState& state, TreeEntry& entry, In& in) {
  entry.name = in.text(kMaxName);
  if (in.ok() && !valid_name(entry.name)) in.fail();
  const bool has_target = get_attr(state, entry.attr, in);
  if (!known_type(entry.attr.mode)) in.fail();
  if (!has_target) return;
  entry.target = in.text(kMaxPath);
  if (!S_ISLNK(entry.attr.mode) || entry.target.empty()) in.fail();
  if (entry.target.find('\0') != std::string::npos) in.fail();
}

std::uint32_t length_of(ByteView bytes) {
  std::uint32_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  return length;
}

base::Error broken() { return base::errno_error(EPROTO, "tree stream"); }

}  // namespace

void TreeEncoder::add(const TreeBlock& block, Bytes& bytes) {
  const auto start = bytes.size();
  bytes.resize(start + kLengthBytes);
  Out out(bytes);
  out.text(block.path);
  put_attr(state_, block.attr, attr_bits(state_, block.attr, false), out);
  out.num(block.flags);
  out.num(static_cast<std::uint32_t>(block.error));
  out.num(block.entries.size());
  for (const auto& entry : block.entries) {
    const bool has_target = S_ISLNK(entry.attr.mode) && !entry.target.empty();
    out.text(entry.name);
    put_attr(state_, entry.attr, attr_bits(state_, entry.attr, has_target), out);
    if (has_target) out.text(entry.target);
  }
  const auto length = static_cast<std::uint32_t>(bytes.size() - start - kLengthBytes);
  std::memcpy(bytes.data() + start, &length, sizeof length);
}

base::Result<TreeBlock> TreeDecoder::decode_block(ByteView body) {
  In in(body);
  TreeBlock block;
  block.path = in.text(kMaxPath);
  if (!valid_path(block.path)) in.fail();
  if (get_attr(state_, block.attr, in)) in.fail();
  block.flags = in.num32();
  block.error = static_cast<std::int32_t>(in.num(kMaxErrno));
  const auto count = static_cast<std::size_t>(in.num(kMaxBlockEntries));
  if ((block.flags & ~kKnownFlags) != 0) in.fail();
  if ((block.flags & kFlagsWithoutEntries) != 0 && count != 0) in.fail();
  if (count > in.left()) in.fail();  // an entry takes more than a byte
  if (in.ok()) block.entries.reserve(count);
  for (std::size_t i = 0; i < count && in.ok(); ++i) get_entry(state_, block.entries.emplace_back(), in);
  if (!in.done()) return broken();
  return block;
}

base::Result<void> TreeDecoder::feed(ByteView bytes, const Sink& sink) {
  if (dead_) return broken();
  while (!bytes.empty()) {
    ByteView body;
    if (pending_.empty() && bytes.size() > kLengthBytes && length_of(bytes) <= bytes.size() - kLengthBytes) {
      body = bytes.subspan(kLengthBytes, length_of(bytes));  // whole in the input: no copy
      bytes = bytes.subspan(kLengthBytes + body.size());
    } else {
      auto wanted = kLengthBytes;
      if (pending_.size() >= kLengthBytes) wanted += length_of(pending_);
      const auto taken = std::min(wanted - pending_.size(), bytes.size());
      pending_.insert(pending_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
      bytes = bytes.subspan(taken);
      if (pending_.size() < kLengthBytes) return {};
      const auto length = length_of(pending_);
      if (length == 0 || length > kMaxTreeBlock) {
        dead_ = true;
        return broken();
      }
      if (pending_.size() < kLengthBytes + length) continue;
      body = ByteView(pending_).subspan(kLengthBytes);
    }
    auto block = body.size() > kMaxTreeBlock ? base::Result<TreeBlock>(broken()) : decode_block(body);
    pending_.clear();
    if (!block) {
      dead_ = true;
      return std::move(block).error();
    }
    sink(std::move(*block));
  }
  return {};
}

}  // namespace nearbox::wire
